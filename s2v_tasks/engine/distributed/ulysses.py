"""Sequence parallelism: each rank holds a run of the tokens, and in self attention a share of the heads.

Legend: p ranks of the group, B batch (1), L all tokens, l tokens of this rank, H heads, d head width, P values of a
patch. Runs may be of unequal length: the exchanges take each rank's length into account, so that no token is padding.
Everything outside of self attention is local to a token, the injection of sound too; only the finished patches of the
video, much smaller than hidden states, are gathered.
"""

from itertools import pairwise
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from s2v_tasks.engine.models.attention import SelfAttention
from s2v_tasks.engine.models.attention_kernels import Attend
from s2v_tasks.engine.models.transformer import S2VTransformer, Scene


def split_tokens(num_tokens: int, num_ranks: int) -> list[int]:
    """Where the run of each rank begins, and where the last one ends; the first runs are longer by one if need be."""
    return [rank * (num_tokens // num_ranks) + min(rank, num_tokens % num_ranks) for rank in range(num_ranks + 1)]


class SequenceParallel:
    """The tokens of a transformer, shared among the ranks of `group`."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group = group
        self.rank, self.num_ranks = group.rank(), group.size()
        self._bounds = split_tokens(0, self.num_ranks)
        self._num_video = 0

    def attach(self, transformer: S2VTransformer) -> None:
        """Make `transformer` compute this rank's tokens only, and give the whole velocity on each rank."""
        transformer.register_forward_pre_hook(self._cut)
        transformer.head.register_forward_hook(self._gather)
        for module in transformer.modules():
            if isinstance(module, SelfAttention):
                module.attend = self._over_heads(module.attend)

    def _cut(self, _: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        latents, timestep, scene, *told = args
        self._bounds, self._num_video = split_tokens(scene.end, self.num_ranks), scene.num_video
        start, end = self._bounds[self.rank : self.rank + 2]
        part: Scene = scene.part(start, end)
        return latents, timestep, part, *told

    def _gather(self, _: nn.Module, __: tuple[Any, ...], patches_BNP: Tensor) -> Tensor:
        """The patches of all video tokens: each rank sends as many rows as the longest run has."""
        padded = patches_BNP.new_zeros(self._bounds[1], patches_BNP.shape[-1])
        padded[: patches_BNP.shape[1]] = patches_BNP[0]
        runs = [torch.empty_like(padded) for _ in range(self.num_ranks)]
        dist.all_gather(runs, padded, group=self.group)
        ends = [min(bound, self._num_video) for bound in self._bounds]
        counts = [end - start for start, end in pairwise(ends)]
        return torch.cat([run[:count] for run, count in zip(runs, counts, strict=True)])[None]

    def _over_heads(self, attend: Attend) -> Attend:
        """`attend` for the tokens of this rank: each rank attends with all tokens, for its share of the heads."""

        def shared(q_BlHd: Tensor, k_BlHd: Tensor, v_BlHd: Tensor) -> Tensor:
            # In the last block fewer tokens ask than are seen; they travel together all the same.
            num_asking = q_BlHd.shape[1]
            q_BlHd = F.pad(q_BlHd, (0, 0, 0, 0, 0, k_BlHd.shape[1] - num_asking))
            qkv_l3Hd = torch.stack([q_BlHd[0], k_BlHd[0], v_BlHd[0]], dim=1)
            q, k, v = self._heads_to_ranks(qkv_l3Hd).unbind(dim=1)
            return self._tokens_to_ranks(attend(q[None], k[None], v[None])[0])[None, :num_asking]

        return cast(Attend, torch.compiler.disable(shared))  # type: ignore[no-untyped-call]

    @property
    def _runs(self) -> list[int]:
        return [end - start for start, end in pairwise(self._bounds)]

    def _heads_to_ranks(self, x_l3Hd: Tensor) -> Tensor:
        """`[l, 3, H, d]` to `[L, 3, H/p, d]`."""
        length = x_l3Hd.shape[0]
        shares_pl3hd = torch.stack(x_l3Hd.chunk(self.num_ranks, dim=2))
        received = x_l3Hd.new_empty(self._bounds[-1], *shares_pl3hd.shape[2:])
        dist.all_to_all_single(
            received, shares_pl3hd.flatten(0, 1), self._runs, [length] * self.num_ranks, group=self.group
        )
        return received

    def _tokens_to_ranks(self, x_Lhd: Tensor) -> Tensor:
        """`[L, H/p, d]` to `[l, H, d]`."""
        length = self._runs[self.rank]
        received = x_Lhd.new_empty(self.num_ranks * length, *x_Lhd.shape[1:])
        dist.all_to_all_single(received, x_Lhd.contiguous(), [length] * self.num_ranks, self._runs, group=self.group)
        return torch.cat(received.chunk(self.num_ranks), dim=1)
