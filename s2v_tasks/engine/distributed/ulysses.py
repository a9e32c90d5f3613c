"""Ulysses sequence parallelism: each rank holds a range of the tokens and, in self attention, a share of the heads.

All-to-all exchanges before and after self attention convert between both.

Legend: p ranks of the group, B batch (1), L all tokens, l tokens of this rank, H heads, d head width, P values of a
patch. Ranges can be of unequal length: the exchanges use the length of each rank, so that no token is padding. All work
outside of self attention is local to a token, including the audio injection. Only the finished patches of the video are
gathered, which are much smaller than hidden states.
"""

from itertools import pairwise
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from s2v_tasks.engine.models.attention import Attend, SelfAttention
from s2v_tasks.engine.models.forward_inputs import ClipTokens
from s2v_tasks.engine.models.transformer import S2VTransformer


def split_tokens(num_tokens: int, num_ranks: int) -> list[int]:
    """Return the start of the range of each rank and the end of the last; the first ranges can be longer by one."""
    return [rank * (num_tokens // num_ranks) + min(rank, num_tokens % num_ranks) for rank in range(num_ranks + 1)]


class SequenceParallel:
    """Shares the tokens of a transformer among the ranks of `group`."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group = group
        self.rank, self.num_ranks = group.rank(), group.size()
        self._bounds = split_tokens(0, self.num_ranks)
        self._num_video = 0

    def attach(self, transformer: S2VTransformer) -> None:
        """Make `transformer` compute only the tokens of this rank, and return the whole velocity on each rank."""
        transformer.register_forward_pre_hook(self._cut)
        transformer.head.register_forward_hook(self._gather)
        for module in transformer.modules():
            if isinstance(module, SelfAttention):
                module.attend = self._over_heads(module.attend)

    def _cut(self, _: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        latents, timestep, clip_tokens, *rest = args
        self._bounds, self._num_video = split_tokens(clip_tokens.end, self.num_ranks), clip_tokens.num_video
        start, end = self._bounds[self.rank : self.rank + 2]
        part: ClipTokens = clip_tokens.part(start, end)
        return latents, timestep, part, *rest

    def _gather(self, _: nn.Module, __: tuple[Any, ...], patches_BNP: Tensor) -> Tensor:
        """Return the patches of all video tokens; each rank sends as many rows as the longest range has."""
        padded = patches_BNP.new_zeros(self._bounds[1], patches_BNP.shape[-1])
        padded[: patches_BNP.shape[1]] = patches_BNP[0]
        runs = [torch.empty_like(padded) for _ in range(self.num_ranks)]
        dist.all_gather(runs, padded, group=self.group)
        ends = [min(bound, self._num_video) for bound in self._bounds]
        counts = [end - start for start, end in pairwise(ends)]
        return torch.cat([run[:count] for run, count in zip(runs, counts, strict=True)])[None]

    def _over_heads(self, attend: Attend) -> Attend:
        """Return `attend` for the tokens of this rank: each rank attends to all tokens with its share of the heads."""

        def shared(q_BlHd: Tensor, k_BlHd: Tensor, v_BlHd: Tensor) -> Tensor:
            # The last block has fewer queries than keys; all travel together, so queries are padded.
            num_queries = q_BlHd.shape[1]
            q_BlHd = F.pad(q_BlHd, (0, 0, 0, 0, 0, k_BlHd.shape[1] - num_queries))
            qkv_l3Hd = torch.stack([q_BlHd[0], k_BlHd[0], v_BlHd[0]], dim=1)
            q, k, v = self._heads_to_ranks(qkv_l3Hd).unbind(dim=1)
            return self._tokens_to_ranks(attend(q[None], k[None], v[None])[0])[None, :num_queries]

        return cast(Attend, torch.compiler.disable(shared))  # type: ignore[no-untyped-call]

    @property
    def _runs(self) -> list[int]:
        return [end - start for start, end in pairwise(self._bounds)]

    def _heads_to_ranks(self, x_l3Hd: Tensor) -> Tensor:
        """Exchange `[l, 3, H, d]` for `[L, 3, H/p, d]`."""
        length = x_l3Hd.shape[0]
        shares_pl3hd = torch.stack(x_l3Hd.chunk(self.num_ranks, dim=2))
        received = x_l3Hd.new_empty(self._bounds[-1], *shares_pl3hd.shape[2:])
        dist.all_to_all_single(
            received, shares_pl3hd.flatten(0, 1), self._runs, [length] * self.num_ranks, group=self.group
        )
        return received

    def _tokens_to_ranks(self, x_Lhd: Tensor) -> Tensor:
        """Exchange `[L, H/p, d]` for `[l, H, d]`."""
        length = self._runs[self.rank]
        received = x_Lhd.new_empty(self.num_ranks * length, *x_Lhd.shape[1:])
        dist.all_to_all_single(received, x_Lhd.contiguous(), [length] * self.num_ranks, self._runs, group=self.group)
        return torch.cat(received.chunk(self.num_ranks), dim=1)
