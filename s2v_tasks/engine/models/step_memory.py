"""Steps that need not be computed: while the first block changes its input as before, the others are taken to, too.

Legend: B batch (1), L tokens, N video tokens, D model width.
"""

from collections.abc import Callable

import torch
from torch import Tensor


def _alone(sums_2: Tensor) -> Tensor:
    return sums_2


class StepMemory:
    """What one guidance branch remembers of the last step that it computed in full.

    A step is taken from memory where the residual of the first block differs from the remembered one by less than
    `threshold`, relative to it (mean absolute values over all tokens). `total` sums over the ranks that share the
    work, so that all of them decide alike.
    """

    def __init__(self, threshold: float, total: Callable[[Tensor], Tensor] = _alone) -> None:
        self._threshold, self._total = threshold, total
        self._first_BLD: Tensor | None = None
        self._rest_BND: Tensor | None = None
        self.num_skipped = 0
        self.computed = False  # whether the latest step was computed in full

    def recall_or_run(self, x_BLD: Tensor, first_BLD: Tensor, rest: Callable[[Tensor], Tensor]) -> Tensor:
        """What the blocks behind the first make of the video tokens `[1, N, D]`.

        `first_BLD` is what the first block made of all tokens `x_BLD`; `rest` runs the others on it where need be.
        """
        change_BLD = first_BLD - x_BLD
        self.computed = self._first_BLD is None or not self._is_near(change_BLD, self._first_BLD)
        if self._rest_BND is not None and not self.computed:
            self.num_skipped += 1
            return first_BLD[:, : self._rest_BND.shape[1]] + self._rest_BND
        y_BND = rest(first_BLD.clone())  # the blocks work in the memory of what they are given
        self._first_BLD, self._rest_BND = change_BLD, y_BND - first_BLD[:, : y_BND.shape[1]]
        return y_BND

    def _is_near(self, first_BLD: Tensor, remembered_BLD: Tensor) -> bool:
        sums = [(first_BLD - remembered_BLD).abs().sum(), remembered_BLD.abs().sum()]
        difference, size = self._total(torch.stack(sums).double()).tolist()
        return bool(difference < self._threshold * size)
