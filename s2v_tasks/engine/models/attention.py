"""Self attention over all tokens and cross attention (spec c.7).

Legend: B batch, L queries, S keys, D model width, H heads, d head width, c = d/2.
"""

from typing import NamedTuple

from einops import rearrange
from torch import Tensor, nn

from s2v_tasks.engine.models.attention_kernels import Attend, sdpa
from s2v_tasks.engine.models.layers import Linear, RMSNorm
from s2v_tasks.engine.models.rope import rotate


class KeysValues(NamedTuple):
    """Keys and values of a context `[B, S, H, d]` and, if keys count unequally, a bias."""

    keys: Tensor
    values: Tensor
    bias_S: Tensor | None = None


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
        """Return the queries `[B, L, H, d]`."""
        return self._heads(self.norm_q(self.q(x_BLD)))

    def keys_values(self, x_BSD: Tensor) -> KeysValues:
        """Return the keys and values of a context."""
        return KeysValues(self._heads(self.norm_k(self.k(x_BSD))), self._heads(self.v(x_BSD)))

    def _heads(self, x: Tensor) -> Tensor:
        heads: Tensor = rearrange(x, "b l (h d) -> b l h d", h=self.num_heads)
        return heads


class SelfAttention(Attention):
    """Attention to all tokens, with rotary positions.

    `attend` computes the softmax attention itself and may be replaced from outside.
    """

    def __init__(self, dim: int, num_heads: int, eps: float) -> None:
        super().__init__(dim, num_heads, eps)
        self.attend: Attend = sdpa

    def forward(self, x_BLD: Tensor, rope_Lc2: Tensor, num_kept: int) -> Tensor:
        """Return the attention `[1, num_kept, D]` of the first `num_kept` tokens to all tokens."""
        return self.o(self._attend(x_BLD, rope_Lc2, num_kept).flatten(2))  # type: ignore[no-any-return]

    def _attend(self, x_BLD: Tensor, rope_Lc2: Tensor, num_kept: int) -> Tensor:
        # A method of its own, so that queries, keys and values are freed before the output projection.
        x_BLD = x_BLD.to(self.q.weight.dtype)  # once for the three products
        k, v, _ = self.keys_values(x_BLD)
        k = rotate(k, rope_Lc2)
        q = rotate(self.queries(x_BLD[:, :num_kept]), rope_Lc2[:num_kept])
        return self.attend(q, k, v)


class CrossAttention(Attention):
    """Attention of tokens to a context (text or sound), without positions."""

    def forward(self, x_BLD: Tensor, context: KeysValues) -> Tensor:
        return self.o(sdpa(self.queries(x_BLD), *context).flatten(2))  # type: ignore[no-any-return]
