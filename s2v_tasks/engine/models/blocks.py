"""A transformer block and the head (spec c.7, c.9).

Legend: B batch (1), L all tokens, N video tokens, D model width, S text rows, c complex channels of a head.
The tokens are `[video N][reference and motion]`. Each of these two segments has its own six modulation vectors
(shift, scale, gate of attention, then of the feed-forward): the second segment's are those of timestep 0.
"""

import torch
from torch import Tensor, nn

from s2v_tasks.engine.models.attention import CrossAttention, SelfAttention
from s2v_tasks.engine.models.config import S2VConfig
from s2v_tasks.engine.models.layers import Fp32Linear, LayerNorm, Linear


class Block(nn.Module):
    """Self attention, text attention and feed-forward."""

    def __init__(self, config: S2VConfig) -> None:
        super().__init__()
        dim, eps = config.dim, config.eps
        self.modulation = nn.Parameter(torch.zeros(1, 6, dim))
        self.norm1 = LayerNorm(dim, eps)
        self.self_attn = SelfAttention(dim, config.num_heads, eps)
        self.norm3 = LayerNorm(dim, eps, affine=True)
        self.cross_attn = CrossAttention(dim, config.num_heads, eps)
        self.norm2 = LayerNorm(dim, eps)
        self.ffn = nn.Sequential(Linear(dim, config.ffn_dim), nn.GELU(approximate="tanh"), Linear(config.ffn_dim, dim))

    def forward(self, x_BLD: Tensor, e_26D: Tensor, num_video: int, rope_Lc: Tensor, context_BSD: Tensor) -> Tensor:
        """Tokens `[1, L, D]` to tokens; `e_26D` are the modulations of the two segments, fp32."""
        m_62D = (self.modulation.float() + e_26D).transpose(0, 1)
        shift1, scale1, gate1, shift2, scale2, gate2 = m_62D

        y = self.self_attn(_modulate(self.norm1(x_BLD), shift1, scale1, num_video), rope_Lc)
        x_BLD = x_BLD + _gate(y, gate1, num_video)
        x_BLD = x_BLD + self.cross_attn(self.norm3(x_BLD), context_BSD)
        y = self.ffn(_modulate(self.norm2(x_BLD), shift2, scale2, num_video))
        return x_BLD + _gate(y, gate2, num_video)


class Head(nn.Module):
    """Video tokens to the values of their patches, in fp32."""

    def __init__(self, config: S2VConfig) -> None:
        super().__init__()
        self.modulation = nn.Parameter(torch.zeros(1, 2, config.dim))
        self.norm = LayerNorm(config.dim, config.eps)
        self.head = Fp32Linear(config.dim, 4 * config.out_dim)

    def forward(self, x_BND: Tensor, e_1D: Tensor) -> Tensor:
        """`[1, N, D]` and the time embedding `[1, D]` to `[1, N, 4 * out_dim]`."""
        shift, scale = (self.modulation.float() + e_1D[:, None]).unbind(dim=1)
        return self.head(self.norm(x_BND.float()) * (1 + scale) + shift)  # type: ignore[no-any-return]


def _modulate(x_BLD: Tensor, shift_2D: Tensor, scale_2D: Tensor, num_video: int) -> Tensor:
    video, rest = x_BLD[:, :num_video], x_BLD[:, num_video:]
    return torch.cat([video * (1 + scale_2D[0]) + shift_2D[0], rest * (1 + scale_2D[1]) + shift_2D[1]], dim=1)


def _gate(x_BLD: Tensor, gate_2D: Tensor, num_video: int) -> Tensor:
    return torch.cat([x_BLD[:, :num_video] * gate_2D[0], x_BLD[:, num_video:] * gate_2D[1]], dim=1)
