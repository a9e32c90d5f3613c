"""The kernels of the wide work: matrix products, norms, and attention, torch's own or others by name where installed.

Legend: B batch, L queries, S keys, H heads, d head width.
"""

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s2v_tasks.errors import ConfigurationError

# Softmax attention without mask, scaled by 1/sqrt(d): q_BLHd, k_BSHd, v_BSHd of one dtype to [B, L, H, d].
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]

# name: (module, function, arguments that make it take tokens before heads)
_OPTIONAL: dict[str, tuple[str, str, dict[str, Any]]] = {
    "flash2": ("flash_attn", "flash_attn_func", {}),
    "flash3": ("flash_attn_interface", "flash_attn_func", {}),
    "sage": ("sageattention", "sageattn", {"tensor_layout": "NHD"}),
}
ATTENTION_KERNELS = ("sdpa", *_OPTIONAL)

_ONEDNN = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, *, gelu: bool = False) -> Tensor:
    """`x` `[..., in]` times `weight` `[out, in]`, plus `bias`, in their common dtype; then GELU (tanh), if asked for.

    In fp32 on a CPU oneDNN computes it: MKL, which torch takes there, leaves a third of an AMD processor unused. The
    sums differ by rounding. Weights of another class than torch's own, such as quantised ones, know their own way.
    """
    is_plain = type(weight) in (Tensor, nn.Parameter)
    if not (_ONEDNN and is_plain and weight.device.type == "cpu" and weight.dtype == torch.float32):
        product = F.linear(x, weight, bias)
        return F.gelu(product, approximate="tanh") if gelu else product
    # The operator that torch.compile emits: the public ones copy what they take and give.
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


def sdpa(q_BLHd: Tensor, k_BSHd: Tensor, v_BSHd: Tensor, bias_S: Tensor | None = None) -> Tensor:
    """Torch's scaled dot product attention; `bias_S` is added to the score of each key."""
    q, k, v = (x.transpose(1, 2) for x in (q_BLHd, k_BSHd, v_BSHd))
    mask_BHLS = None if bias_S is None else bias_S[None, None, None]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask_BHLS).transpose(1, 2)


def attention_kernel(name: str) -> Attend:
    """The kernel of that name.

    Raises ConfigurationError for an unknown name and for a kernel whose package is not installed.
    """
    if name == "sdpa":
        return sdpa
    if name not in _OPTIONAL:
        raise ConfigurationError(
            f"attention kernel {name!r} is unknown; expected one of {', '.join(ATTENTION_KERNELS)}"
        )
    module, function, arguments = _OPTIONAL[name]
    if find_spec(module) is None:
        raise ConfigurationError(
            f"attention kernel {name!r} needs the Python module {module}, which is not installed; "
            "install it or choose sdpa"
        )
    kernel = getattr(import_module(module), function)

    def attend(q_BLHd: Tensor, k_BSHd: Tensor, v_BSHd: Tensor) -> Tensor:
        result = kernel(q_BLHd, k_BSHd, v_BSHd, **arguments)
        # Some releases return the log-sum-exp as well.
        attended: Tensor = result[0] if isinstance(result, tuple) else result
        return attended

    return attend
