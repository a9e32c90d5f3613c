"""The two branches of guidance on two groups of ranks."""

from collections.abc import Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


class BranchSplit:
    """Every rank of `group` computes one branch, then all have all velocities."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group = group

    def mine(self, branches: Sequence[T]) -> Sequence[T]:
        """The branch of this rank."""
        rank = self.group.rank()
        return branches[rank : rank + 1]

    def exchange(self, velocity: Tensor) -> tuple[Tensor, ...]:
        """The velocities of all branches, in their order."""
        velocities = [torch.empty_like(velocity) for _ in range(self.group.size())]
        dist.all_gather(velocities, velocity.contiguous(), group=self.group)
        return tuple(velocities)
