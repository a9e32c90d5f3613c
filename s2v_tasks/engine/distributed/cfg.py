"""CFG parallelism: the two branches of classifier-free guidance run on two groups of ranks."""

from collections.abc import Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


class BranchSplit:
    """Assigns one branch to each rank of `group` and exchanges the velocities."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group = group

    def mine(self, branches: Sequence[T]) -> Sequence[T]:
        """Return the branch of this rank."""
        rank = self.group.rank()
        return branches[rank : rank + 1]

    def exchange(self, velocity: Tensor) -> tuple[Tensor, ...]:
        """Return the velocities of all branches, in their order."""
        velocities = [torch.empty_like(velocity) for _ in range(self.group.size())]
        dist.all_gather(velocities, velocity.contiguous(), group=self.group)
        return tuple(velocities)
