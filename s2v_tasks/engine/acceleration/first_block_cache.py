"""First-block cache: reuse the residual of the later blocks while the residual of the first block barely changes.

Legend: B batch (1), L tokens, N video tokens, D model width.
"""

from collections.abc import Callable

import torch
from torch import Tensor


def _one_rank(sums_2: Tensor) -> Tensor:
    return sums_2


class FirstBlockCache:
    """Residuals of one guidance branch at the last step whose blocks all ran.

    The later blocks are skipped where the residual of the first block differs from the cached one by less than
    `threshold` times its size (mean absolute values over all tokens). `total` sums over the ranks that share the
    work, so that all of them decide alike.
    """

    def __init__(self, threshold: float, total: Callable[[Tensor], Tensor] = _one_rank) -> None:
        self._threshold, self._total = threshold, total
        self._first_BLD: Tensor | None = None
        self._later_BND: Tensor | None = None
        self.num_skipped = 0
        self.computed = False  # whether all blocks ran at the latest step

    def apply(self, x_BLD: Tensor, first_BLD: Tensor, later_blocks: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the video tokens `[1, N, D]` behind the last block, computed or from the cached residual.

        `x_BLD` is the input of the first block, `first_BLD` its output. `later_blocks` runs the other blocks.
        """
        change_BLD = first_BLD - x_BLD
        self.computed = self._first_BLD is None or not self._is_near(change_BLD, self._first_BLD)
        if self._later_BND is not None and not self.computed:
            self.num_skipped += 1
            return first_BLD[:, : self._later_BND.shape[1]] + self._later_BND
        y_BND = later_blocks(first_BLD.clone())  # the blocks work in the memory of their input
        self._first_BLD, self._later_BND = change_BLD, y_BND - first_BLD[:, : y_BND.shape[1]]
        return y_BND

    def _is_near(self, first_BLD: Tensor, cached_BLD: Tensor) -> bool:
        sums = [(first_BLD - cached_BLD).abs().sum(), cached_BLD.abs().sum()]
        difference, size = self._total(torch.stack(sums).double()).tolist()
        return bool(difference < self._threshold * size)
