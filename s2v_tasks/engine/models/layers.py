"""Layers that carry the precision policy of spec c.10.

With bf16 weights the wide matrix products run in bf16, everything that normalises, modulates or embeds time and sound
runs in fp32, and the residual stream is fp32. The casts are explicit, so that the same code with fp32 weights is an
all-fp32 forward.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from s2v_tasks.engine.models.kernels import linear, rms_norm


class Linear(nn.Linear):
    """A linear layer computed in the dtype of its weight, whatever the dtype of its input."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x.to(self.weight.dtype), self.weight, self.bias)


class GeluLinear(Linear):
    """A linear layer with a tanh GELU behind it, in one kernel where there is one."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x.to(self.weight.dtype), self.weight, self.bias, gelu=True)


class Fp32Linear(nn.Linear):
    """A linear layer computed in fp32 from weights of any dtype."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.float(), self.weight.float(), self.bias.float())


class PatchConv(nn.Conv3d):
    """Non-overlapping patches of `kernel` (t, y, x) to tokens, in the dtype of the weight.

    `[1, C, F, h, w]` to `[1, F' * h' * w', D]`, ordered frame, row, column. Stored as a convolution, computed as the
    matrix product that it is.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: tuple[int, int, int]) -> None:
        super().__init__(in_channels, out_channels, kernel_size=kernel, stride=kernel)

    def patches(self, x_BCFhw: Tensor) -> Tensor:
        """The values of each patch, `[1, F' * h' * w', C * t * y * x]`."""
        dt, dy, dx = self.kernel_size
        values: Tensor = rearrange(x_BCFhw, "b c (f dt) (h dy) (w dx) -> b (f h w) (c dt dy dx)", dt=dt, dy=dy, dx=dx)
        return values

    def tokens(self, patches: Tensor) -> Tensor:
        """Each patch times the kernel."""
        return linear(patches.to(self.weight.dtype), self.weight.flatten(1), self.bias)

    def forward(self, x_BCFhw: Tensor) -> Tensor:
        return self.tokens(self.patches(x_BCFhw))


class RMSNorm(nn.Module):
    """Root mean square norm over the last axis: computed in fp32, cast back, then scaled by its weight.

    It may work in the memory of what it is given.
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
    """Layer norm without weights, then `* (1 + scale) + shift`, in fp32 and in one kernel."""
    return F.layer_norm(x.float(), x.shape[-1:], 1 + scale_D, shift_D, eps)


def timestep_sinusoid(t: Tensor, width: int) -> Tensor:
    """Sinusoidal embedding `[n] -> [n, width]`, cosines first, in float64 (spec c.5)."""
    half = width // 2
    exponents = torch.arange(half, dtype=torch.float64, device=t.device) / half
    angles = torch.outer(t.double(), torch.pow(10000, -exponents))
    return torch.cat([angles.cos(), angles.sin()], dim=1)
