"""The kernels of the wide work beside attention: matrix products and norms."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_ONEDNN = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, *, gelu: bool = False) -> Tensor:
    """`x` `[..., in]` times `weight` `[out, in]`, plus `bias`, in their common dtype; then GELU (tanh), if asked for.

    In fp32 on a CPU oneDNN computes it: MKL, which torch takes there, leaves a third of an AMD processor unused. The
    sums differ by rounding. Weights of another class than torch's own, such as quantised ones, know their own way.
    """
    is_plain = type(weight) in (Tensor, nn.Parameter)
    onednn = _ONEDNN and is_plain and weight.device.type == "cpu" and weight.dtype == torch.float32
    if not onednn or torch.compiler.is_compiling():  # the compiler cannot take the operator with weights as arguments
        product = F.linear(x, weight, bias)
        return F.gelu(product, approximate="tanh") if gelu else product
    # An operator of the compiler's own output: the public ones copy what they take and give.
    fused: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "gelu" if gelu else "none", [], "tanh")
    return fused


def rms_norm(x: Tensor, eps: float) -> Tensor:
    """`x` over its root mean square along the last axis, computed in fp32 and returned in its dtype.

    Works in the memory of `x` in fp32 on a CPU: torch has no kernel for it there and would fill fresh memory twice.
    """
    if x.device.type != "cpu" or x.dtype != torch.float32:
        return F.rms_norm(x, x.shape[-1:], eps=eps)
    mean = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1])
    return x.mul_(mean.add_(eps).rsqrt_())
