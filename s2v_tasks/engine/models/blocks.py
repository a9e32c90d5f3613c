"""A transformer block and the head (spec c.7, c.9).

Legend: B batch (1), L all tokens, N video tokens, D model width, c complex channels of a head.
The tokens are `[video N][reference and motion]`. Each of these two segments has its own six modulation vectors
(shift, scale, gate of attention, then of the feed-forward): the second segment's are those of timestep 0.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from s2v_tasks.engine.models.attention import CrossAttention, KeysValues, SelfAttention
from s2v_tasks.engine.models.config import S2VConfig
from s2v_tasks.engine.models.layers import Fp32Linear, GeluLinear, LayerNorm, Linear, modulated_norm

# Tokens that pass text attention and feed-forward at a time. The widest tensor, the hidden layer of the feed-forward,
# then takes 0.9 GB (13,824 channels in bf16) instead of 1.75 GB for a clip of 63,360 tokens, and the peak is elsewhere.
# On an H200 a step of 32,760 tokens took 2 % more time in chunks of 8192 than in one (docs/gpu.md).
CHUNK_TOKENS = 32768


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
        """Return the tokens `[1, L, D]`, or with `video_only` those of the video `[1, N, D]`, for each of `texts`.

        `x_BLD` and `e_26D`, the modulations of the two segments, are fp32. The result for the last text is computed in
        the memory of `x_BLD`.
        """
        m_62D = (self.modulation.float() + e_26D).transpose(0, 1)
        shift1, scale1, gate1, *ffn_m_32D = m_62D

        num_kept = num_video if video_only else x_BLD.shape[1]

        def norm(x_BLD: Tensor) -> Tensor:
            return self._modulate(x_BLD, shift1, scale1, num_video)

        y_BLD = self.self_attn(x_BLD, norm, rope_Lc2, num_kept)
        x_BLD = x_BLD[:, :num_kept]
        _add_gated(x_BLD, y_BLD, gate1, num_video)
        del y_BLD
        results = [*(x_BLD.clone() for _ in texts[1:]), x_BLD]
        for result_BLD, text in zip(results, texts, strict=True):
            for part in token_chunks(num_kept):
                self._add_text_and_ffn(result_BLD[:, part], text, ffn_m_32D, max(0, num_video - part.start))
        return results

    def _add_text_and_ffn(self, x_BLD: Tensor, text: KeysValues, m_32D: Sequence[Tensor], num_video: int) -> None:
        """Add text attention and feed-forward in place; both treat each token alone."""
        shift, scale, gate = m_32D
        x_BLD += self.cross_attn(self.norm3(x_BLD), text)
        y_BLD = self.ffn(self._modulate(x_BLD, shift, scale, num_video).to(self.cross_attn.q.weight.dtype))
        _add_gated(x_BLD, y_BLD, gate, num_video)

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
        """Project tokens `[1, N, D]` with the time embedding `[1, D]` to `[1, N, 4 * out_dim]`."""
        shift, scale = (self.modulation.float() + e_1D)[0]
        return self.head(modulated_norm(x_BND, scale, shift, self.eps))  # type: ignore[no-any-return]


def token_chunks(num_tokens: int) -> list[slice]:
    """Return the slices of about equal length in which work that treats each token alone is done.

    Compiled, all tokens are one chunk: fused kernels keep the tensors in between out of memory, and a loop would be
    unrolled into as many copies of the graph.
    """
    num_chunks = 1 if torch.compiler.is_compiling() else max(1, -(-num_tokens // CHUNK_TOKENS))
    ends = [num_tokens * index // num_chunks for index in range(num_chunks + 1)]
    return [slice(start, end) for start, end in pairwise(ends)]


def _add_gated(x_BLD: Tensor, y_BLD: Tensor, gate_2D: Tensor, num_video: int) -> None:
    """Add `y` times the gate of its segment to `x`, in place and in fp32."""
    x_BLD[:, :num_video].addcmul_(y_BLD[:, :num_video], gate_2D[0])
    x_BLD[:, num_video:].addcmul_(y_BLD[:, num_video:], gate_2D[1])
