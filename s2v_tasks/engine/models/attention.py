"""Self attention over all tokens and cross attention (spec c.7).

Legend: B batch, L queries, S keys, D model width, H heads, d head width, c = d/2.
"""

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from s2v_tasks.engine.models.layers import Linear, RMSNorm
from s2v_tasks.engine.models.rope import rotate


def attention(q_BLHd: Tensor, k_BSHd: Tensor, v_BSHd: Tensor) -> Tensor:
    """Softmax attention without mask, scaled by 1/sqrt(d), in the dtype of the values: `[B, L, H*d]`."""
    dtype = v_BSHd.dtype
    q, k, v = (x.to(dtype).transpose(1, 2) for x in (q_BLHd, k_BSHd, v_BSHd))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class Attention(nn.Module):
    """The projections that self and cross attention share; q and k are normalised over the full width."""

    def __init__(self, dim: int, num_heads: int, eps: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = Linear(dim, dim)
        self.k = Linear(dim, dim)
        self.v = Linear(dim, dim)
        self.o = Linear(dim, dim)
        self.norm_q = RMSNorm(dim, eps)
        self.norm_k = RMSNorm(dim, eps)

    def queries(self, x_BLD: Tensor) -> Tensor:
        """Queries `[B, L, H, d]`."""
        return self._heads(self.norm_q(self.q(x_BLD)))

    def keys(self, x_BSD: Tensor) -> Tensor:
        """Keys `[B, S, H, d]`."""
        return self._heads(self.norm_k(self.k(x_BSD)))

    def values(self, x_BSD: Tensor) -> Tensor:
        """Values `[B, S, H, d]`."""
        return self._heads(self.v(x_BSD))

    def _heads(self, x: Tensor) -> Tensor:
        heads: Tensor = rearrange(x, "b l (h d) -> b l h d", h=self.num_heads)
        return heads


class SelfAttention(Attention):
    """Attention of all tokens to all tokens, with rotary positions."""

    def forward(self, x_BLD: Tensor, rope_Lc: Tensor) -> Tensor:
        q = rotate(self.queries(x_BLD), rope_Lc)
        k = rotate(self.keys(x_BLD), rope_Lc)
        return self.o(attention(q, k, self.values(x_BLD)))  # type: ignore[no-any-return]


class CrossAttention(Attention):
    """Attention of tokens to a context (text or sound), without positions and without mask."""

    def forward(self, x_BLD: Tensor, context_BSD: Tensor) -> Tensor:
        q, k, v = self.queries(x_BLD), self.keys(context_BSD), self.values(context_BSD)
        return self.o(attention(q, k, v))  # type: ignore[no-any-return]
