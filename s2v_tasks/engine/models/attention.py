"""Self attention over all tokens and cross attention (spec c.7).

Legend: B batch, L queries, S keys, D model width, H heads, d head width, c = d/2.
"""

from typing import NamedTuple

from einops import rearrange
from torch import Tensor, nn

from s2v_tasks.engine.models.kernels import Attend, sdpa
from s2v_tasks.engine.models.layers import Linear, RMSNorm
from s2v_tasks.engine.models.rope import rotate


class KeysValues(NamedTuple):
    """What a context offers to the tokens that attend to it: both `[B, S, H, d]`."""

    keys: Tensor
    values: Tensor


class Attention(nn.Module):
    """The projections that self and cross attention share; q and k are normalised over the full width.

    `attend` computes the softmax attention itself and may be replaced from outside.
    """

    def __init__(self, dim: int, num_heads: int, eps: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attend: Attend = sdpa
        self.q = Linear(dim, dim)
        self.k = Linear(dim, dim)
        self.v = Linear(dim, dim)
        self.o = Linear(dim, dim)
        self.norm_q = RMSNorm(dim, eps)
        self.norm_k = RMSNorm(dim, eps)

    def queries(self, x_BLD: Tensor) -> Tensor:
        """Queries `[B, L, H, d]`."""
        return self._heads(self.norm_q(self.q(x_BLD)))

    def keys_values(self, x_BSD: Tensor) -> KeysValues:
        """Keys and values of a context."""
        return KeysValues(self._heads(self.norm_k(self.k(x_BSD))), self._heads(self.v(x_BSD)))

    def _heads(self, x: Tensor) -> Tensor:
        heads: Tensor = rearrange(x, "b l (h d) -> b l h d", h=self.num_heads)
        return heads


class SelfAttention(Attention):
    """Attention of all tokens to all tokens, with rotary positions."""

    def forward(self, x_BLD: Tensor, rope_Lc2: Tensor) -> Tensor:
        x_BLD = x_BLD.to(self.q.weight.dtype)  # once for the three products
        keys, v = self.keys_values(x_BLD)
        q, k = (rotate(x, rope_Lc2).to(v.dtype) for x in (self.queries(x_BLD), keys))
        return self.o(self.attend(q, k, v).flatten(2))  # type: ignore[no-any-return]


class CrossAttention(Attention):
    """Attention of tokens to a context (text or sound), without positions and without mask."""

    def forward(self, x_BLD: Tensor, context: KeysValues) -> Tensor:
        return self.o(self.attend(self.queries(x_BLD), *context).flatten(2))  # type: ignore[no-any-return]
