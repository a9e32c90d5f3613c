"""First-block cache: reuse the residual of the later blocks while the residual of the first block barely changes.

Legend: B batch (1), L tokens, N video tokens, D model width.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from s2v_tasks.engine.models.forward_inputs import LayerInputs, RunLayer


def _one_rank(sums: Tensor) -> Tensor:
    return sums


@dataclass
class CacheContext:
    """Residuals of one guidance branch at the last step whose blocks all ran."""

    first_BLD: Tensor | None = None  # of the first block
    later_BND: Tensor | None = None  # of the later blocks; while they run, the output of the first block
    computed: bool = False  # True if all blocks ran at the latest step
    num_skipped: int = 0


class FirstBlockCache:
    """A layer hook that skips the later blocks of a branch, with separate contexts for `cond` and `uncond`.

    They are skipped if the residual of the first block differs from the cached one by less than `threshold` times its
    size (mean absolute values over all tokens). `total` sums over the ranks, so that all ranks decide the same.
    """

    def __init__(self, threshold: float, total: Callable[[Tensor], Tensor] = _one_rank) -> None:
        self._threshold, self._total = threshold, total
        self.contexts: dict[str, CacheContext] = {}

    @property
    def num_skipped(self) -> int:
        """Return the number of forwards of all branches whose later blocks were skipped."""
        return sum(context.num_skipped for context in self.contexts.values())

    def restart(self, branch: str) -> None:
        """Forget all residuals; `branch` keeps the count of skipped forwards."""
        self.contexts = {branch: CacheContext(num_skipped=self.num_skipped)}

    def __call__(self, run: RunLayer, layer: int, states: list[Tensor], inputs: LayerInputs, /) -> list[Tensor]:
        contexts = [self.contexts.setdefault(branch.name, CacheContext()) for branch in inputs.conditionings]
        if layer == 0:
            return self._run_first(run, states, inputs, contexts)
        running = [index for index, context in enumerate(contexts) if context.computed]
        if running:
            branches = [inputs.conditionings[index] for index in running]
            outputs = run(layer, [states[index] for index in running], replace(inputs, conditionings=branches))
            states = states.copy()
            for index, y_BLD in zip(running, outputs, strict=True):
                states[index] = y_BLD
        if layer < len(inputs.conditionings[0].text) - 1:
            return states
        return [_after_last(y_BLD, context) for y_BLD, context in zip(states, contexts, strict=True)]

    def _run_first(
        self, run: RunLayer, states: list[Tensor], inputs: LayerInputs, contexts: list[CacheContext]
    ) -> list[Tensor]:
        """Run the first layer, and decide for each branch whether the others run."""
        before_BLD = states[0].clone()  # the block works in the memory of its input
        outputs = run(0, states, inputs)
        changes = [y_BLD - before_BLD for y_BLD in outputs]
        del before_BLD
        num_video = inputs.clip_tokens.video.stop - inputs.clip_tokens.video.start
        near = self._near(changes, contexts)
        for y_BLD, change_BLD, context, is_near in zip(outputs, changes, contexts, near, strict=True):
            context.computed = not is_near
            if is_near:
                context.num_skipped += 1
            else:
                context.first_BLD = change_BLD
                context.later_BND = y_BLD[:, :num_video].clone()
        return outputs

    def _near(self, changes: list[Tensor], contexts: list[CacheContext]) -> list[bool]:
        """Return True for each branch whose residual is close to the cached one; one exchange for all branches."""
        cached = [context.first_BLD for context in contexts]
        sums = [
            torch.stack([(change - first).abs_().sum(), first.abs().sum()])
            for change, first in zip(changes, cached, strict=True)
            if first is not None
        ]
        if not sums:
            return [False] * len(changes)
        decided = iter(self._total(torch.stack(sums).double()).tolist())
        near = []
        for first in cached:
            difference, size = (1.0, 0.0) if first is None else next(decided)
            near.append(difference < self._threshold * size)
        return near


def _after_last(y_BLD: Tensor, context: CacheContext) -> Tensor:
    """Return the video tokens after the last layer; store the residual of the later blocks, or add the cached one."""
    if context.later_BND is None:
        raise RuntimeError("the later blocks of a branch ran without its first block")
    num_video = context.later_BND.shape[1]
    if not context.computed:
        return y_BLD[:, :num_video] + context.later_BND
    torch.sub(y_BLD, context.later_BND, out=context.later_BND)
    return y_BLD
