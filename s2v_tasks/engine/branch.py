"""A branch of guidance over the steps of a clip: what it is told and, with the step cache, what it remembers."""

from collections.abc import Sequence

from torch import Tensor

from s2v_tasks.engine.models.step_memory import StepMemory
from s2v_tasks.engine.models.transformer import Guidance
from s2v_tasks.engine.resume import Basis


class Branch:
    """`memory` is None where every step is computed in full."""

    def __init__(self, guidance: Guidance, memory: StepMemory | None) -> None:
        self.guidance, self.memory = guidance, memory
        self._computed: tuple[int, Tensor] | None = None

    def note(self, step: int, latents: Tensor) -> None:
        """Solver step `step` was done from `latents`."""
        if self.memory is not None and self.memory.computed:
            self._computed = step, latents

    def resume(self, basis: Basis) -> None:
        """The step of `basis` was computed again, another process had done so before."""
        self.note(basis.step, basis.latents)
        if self.memory is not None:
            self.memory.num_skipped = basis.num_skipped

    @property
    def basis(self) -> Basis | None:
        """What the memory rests on; None where there is none."""
        if self.memory is None or self._computed is None:
            return None
        step, latents = self._computed
        return Basis(step, self.memory.num_skipped, latents)


def bases(branches: Sequence[Branch]) -> list[Basis]:
    """What the memories of the branches rest on; nothing where they have none."""
    return [branch.basis for branch in branches if branch.basis is not None]


def skipped_share(branches: Sequence[Branch], num_steps: int) -> float:
    """The share of the forwards of a clip that were taken from memory behind their first block."""
    num_skipped = sum(branch.memory.num_skipped for branch in branches if branch.memory is not None)
    return num_skipped / (num_steps * len(branches))
