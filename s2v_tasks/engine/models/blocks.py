"""A transformer block and the head (spec c.7, c.9).

Legend: B batch (1), L all tokens, N video tokens, D model width, c complex channels of a head.
The tokens are `[video N][reference and motion]`. Each of these two segments has its own six modulation vectors
(shift, scale, gate of attention, then of the feed-forward): the second segment's are those of timestep 0.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from s2v_tasks.engine.models.attention import CrossAttention, KeysValues, SelfAttention
from s2v_tasks.engine.models.config import S2VConfig
from s2v_tasks.engine.models.layers import Fp32Linear, GeluLinear, LayerNorm, Linear, modulated_norm


class Block(nn.Module):
    """Self attention, text attention and feed-forward."""

    def __init__(self, config: S2VConfig) -> None:
        super().__init__()
        dim, eps = config.dim, config.eps
        self.eps = eps
        self.modulation = nn.Parameter(torch.zeros(1, 6, dim))
        self.self_attn = SelfAttention(dim, config.num_heads, eps)
        self.norm3 = LayerNorm(dim, eps, affine=True)
        self.cross_attn = CrossAttention(dim, config.num_heads, eps)
        # The checkpoint numbers these layers with an activation between them.
        self.ffn = nn.Sequential(GeluLinear(dim, config.ffn_dim), nn.Identity(), Linear(config.ffn_dim, dim))

    def forward(
        self,
        x_BLD: Tensor,
        e_26D: Tensor,
        num_video: int,
        rope_Lc2: Tensor,
        texts: Sequence[KeysValues],
        video_only: bool,
    ) -> list[Tensor]:
        """What becomes of the tokens `[1, L, D]`, or of the video's `[1, N, D]`, by each of `texts`.

        `e_26D` are the modulations of the two segments, fp32.
        """
        m_62D = (self.modulation.float() + e_26D).transpose(0, 1)
        shift1, scale1, gate1, shift2, scale2, gate2 = m_62D

        num_kept = num_video if video_only else x_BLD.shape[1]
        y = self.self_attn(self._modulate(x_BLD, shift1, scale1, num_video), rope_Lc2, num_kept)
        seen_BLD = _add_gated(x_BLD[:, :num_kept], y, gate1, num_video)
        results = []
        # The last works in the memory that they share.
        for x_BLD, text in zip([*(seen_BLD.clone() for _ in texts[1:]), seen_BLD], texts, strict=True):
            x_BLD += self.cross_attn(self.norm3(x_BLD), text)
            y = self.ffn(self._modulate(x_BLD, shift2, scale2, num_video))
            results.append(_add_gated(x_BLD, y, gate2, num_video))
        return results

    def _modulate(self, x_BLD: Tensor, shift_2D: Tensor, scale_2D: Tensor, num_video: int) -> Tensor:
        # The few tokens behind the video are computed twice: cheaper than joining two segments in memory.
        y_BLD = modulated_norm(x_BLD, scale_2D[0], shift_2D[0], self.eps)
        y_BLD[:, num_video:] = modulated_norm(x_BLD[:, num_video:], scale_2D[1], shift_2D[1], self.eps)
        return y_BLD


class Head(nn.Module):
    """Video tokens to the values of their patches, in fp32."""

    def __init__(self, config: S2VConfig) -> None:
        super().__init__()
        self.modulation = nn.Parameter(torch.zeros(1, 2, config.dim))
        self.eps = config.eps
        self.head = Fp32Linear(config.dim, 4 * config.out_dim)

    def forward(self, x_BND: Tensor, e_1D: Tensor) -> Tensor:
        """`[1, N, D]` and the time embedding `[1, D]` to `[1, N, 4 * out_dim]`."""
        shift, scale = (self.modulation.float() + e_1D)[0]
        return self.head(modulated_norm(x_BND, scale, shift, self.eps))  # type: ignore[no-any-return]


def _add_gated(x_BLD: Tensor, y_BLD: Tensor, gate_2D: Tensor, num_video: int) -> Tensor:
    """`x` plus `y` times the gate of its segment, in fp32."""
    sum_BLD = torch.addcmul(x_BLD, y_BLD, gate_2D[0])
    sum_BLD[:, num_video:] = torch.addcmul(x_BLD[:, num_video:], y_BLD[:, num_video:], gate_2D[1])
    return sum_BLD
