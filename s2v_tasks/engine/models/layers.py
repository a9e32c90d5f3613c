"""Layers that carry the precision policy of spec c.10, and the kernels of their matrix products and norms.

Legend: B batch (1), C latent channels, F latent frames, h w latent height and width, M motion tokens, D model width.

With bf16 weights the large matrix products run in bf16. Norms, modulation, embeddings of time and sound, and the
residual stream are fp32. The casts are explicit, so that the same code with fp32 weights runs completely in fp32.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from s2v_tasks.engine.models.rope import Grid, motion_grids

_ONEDNN = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
# Latent frames of the motion history by age: older frames have coarser patches (spec c.4).
_NEWEST, _MIDDLE, _OLDEST = 1, 2, 16
MOTION_LATENTS = _NEWEST + _MIDDLE + _OLDEST


class Linear(nn.Linear):
    """A linear layer computed in the dtype of its weight, whatever the dtype of its input."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x.to(self.weight.dtype), self.weight, self.bias)


class GeluLinear(Linear):
    """A linear layer followed by a tanh GELU, in one kernel if available."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x.to(self.weight.dtype), self.weight, self.bias, gelu=True)


class Fp32Linear(nn.Linear):
    """A linear layer computed in fp32 from weights of any dtype."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.float(), self.weight.float(), self.bias.float())


class PatchConv(nn.Conv3d):
    """Non-overlapping patches of `kernel` (t, y, x) to tokens, in the dtype of the weight.

    `[1, C, F, h, w]` to `[1, F' * h' * w', D]`, ordered frame, row, column. Stored as a convolution, computed as a
    matrix product.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: tuple[int, int, int]) -> None:
        super().__init__(in_channels, out_channels, kernel_size=kernel, stride=kernel)

    def patches(self, x_BCFhw: Tensor) -> Tensor:
        """Return the values of each patch, `[1, F' * h' * w', C * t * y * x]`."""
        dt, dy, dx = self.kernel_size
        values: Tensor = rearrange(x_BCFhw, "b c (f dt) (h dy) (w dx) -> b (f h w) (c dt dy dx)", dt=dt, dy=dy, dx=dx)
        return values

    def tokens(self, patches: Tensor) -> Tensor:
        """Return the product of each patch and the kernel."""
        return linear(patches.to(self.weight.dtype), self.weight.flatten(1), self.bias)

    def forward(self, x_BCFhw: Tensor) -> Tensor:
        return self.tokens(self.patches(x_BCFhw))


class RMSNorm(nn.Module):
    """Root mean square norm over the last axis: computed in fp32, cast back, then scaled by its weight.

    It may work in place.
    """

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.eps).mul_(self.weight)


class LayerNorm(nn.LayerNorm):
    """Layer norm over the last axis, computed in fp32 and returned in the dtype of its input."""

    def __init__(self, dim: int, eps: float, *, affine: bool = False) -> None:
        super().__init__(dim, eps=eps, elementwise_affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.float() if self.elementwise_affine else None
        bias = self.bias.float() if self.elementwise_affine else None
        return F.layer_norm(x.float(), self.normalized_shape, weight, bias, self.eps).to(x.dtype)


def modulated_norm(x: Tensor, scale_D: Tensor, shift_D: Tensor, eps: float) -> Tensor:
    """Apply layer norm without weights, then `* (1 + scale) + shift`, in fp32 and in one kernel."""
    return F.layer_norm(x.float(), x.shape[-1:], 1 + scale_D, shift_D, eps)


def timestep_sinusoid(t: Tensor, width: int) -> Tensor:
    """Return the sinusoidal embedding `[n] -> [n, width]`, cosines first, in float64 (spec c.5)."""
    half = width // 2
    exponents = torch.arange(half, dtype=torch.float64, device=t.device) / half
    angles = torch.outer(t.double(), torch.pow(10000, -exponents))
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class FramePacker(nn.Module):
    """Pack up to 19 latent frames into tokens ordered newest 1, the 2 before, the 16 before."""

    def __init__(self, in_dim: int, dim: int, drop_mode: str) -> None:
        super().__init__()
        self.proj = PatchConv(in_dim, dim, (1, 2, 2))
        self.proj_2x = PatchConv(in_dim, dim, (2, 4, 4))
        self.proj_4x = PatchConv(in_dim, dim, (4, 8, 8))
        self.drop_mode = drop_mode

    def forward(self, motion_BCFhw: Tensor, last_motion: int) -> tuple[Tensor, list[Grid]]:
        """Return tokens `[1, M, D]` and their positions.

        `last_motion` selects the history: 2: all, 1: without the newest frame, 0: without the newest three. "padd" sets
        the omitted frames to zero, "drop" removes their tokens.
        """
        history = motion_BCFhw[:, :, -MOTION_LATENTS:]
        missing = MOTION_LATENTS - history.shape[2]
        history = nn.functional.pad(history, (0, 0, 0, 0, missing, 0))
        left_out = (_NEWEST + _MIDDLE, _NEWEST, 0)[last_motion]
        if left_out and self.drop_mode == "padd":
            history = nn.functional.pad(history[:, :, :-left_out], (0, 0, 0, 0, 0, left_out))

        oldest, middle, newest = torch.split(history, [_OLDEST, _MIDDLE, _NEWEST], dim=2)
        tokens = [self.proj(newest), self.proj_2x(middle), self.proj_4x(oldest)]
        grids = list(motion_grids(*history.shape[-2:]))
        first = 2 - last_motion if self.drop_mode == "drop" else 0
        return torch.cat(tokens[first:], dim=1), grids[first:]


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, *, gelu: bool = False) -> Tensor:
    """Return `x` `[..., in]` times `weight` `[out, in]`, plus `bias`, in their common dtype; with `gelu` its tanh GELU.

    In fp32 on a CPU oneDNN computes it: MKL, the choice of torch, leaves a third of an AMD processor unused. The sums
    differ by rounding. Weights of other classes than torch's own, such as quantised ones, use their own implementation.
    """
    is_plain = type(weight) in (Tensor, nn.Parameter)
    onednn = _ONEDNN and is_plain and weight.device.type == "cpu" and weight.dtype == torch.float32
    if not onednn or torch.compiler.is_compiling():  # the compiler cannot take the operator with weights as arguments
        product = F.linear(x, weight, bias)
        return F.gelu(product, approximate="tanh") if gelu else product
    # An operator that the compiler itself emits: the public ones copy their inputs and outputs.
    fused: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "gelu" if gelu else "none", [], "tanh")
    return fused


def rms_norm(x: Tensor, eps: float) -> Tensor:
    """Divide `x` by its root mean square along the last axis, in fp32; return it in the dtype of `x`.

    Works in the memory of `x` in fp32 on a CPU: torch has no kernel for it there and would fill fresh memory twice.
    """
    if x.device.type != "cpu" or x.dtype != torch.float32:
        return F.rms_norm(x, x.shape[-1:], eps=eps)
    mean = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1])
    return x.mul_(mean.add_(eps).rsqrt_())
