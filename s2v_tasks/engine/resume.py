"""The saved state of an interrupted clip: another process resumes it with bit-identical results."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from s2v_tasks.engine.schedulers import Scheduler, restore_solver, solver_state
from s2v_tasks.errors import PermanentError
from s2v_tasks.log import get_logger

# Names in the file.
_STEP, _LATENTS, _CACHED, _MADE_BY = "step", "latents", "bases", "made_by"


@dataclass(frozen=True)
class CachedStep:
    """The last solver step at which all blocks of a branch ran. Computing it again fills the first-block cache."""

    step: int
    num_skipped: int  # steps whose later blocks were skipped so far
    latents: Tensor  # before the step


@dataclass(frozen=True)
class DenoiseState:
    """The state after `step` solver steps: latents, history of the solver, and steps that fill the caches."""

    step: int
    tensors: dict[str, Tensor]

    @classmethod
    def capture(
        cls, step: int, latents: Tensor, scheduler: Scheduler, cached_steps: Sequence[CachedStep] = ()
    ) -> "DenoiseState":
        """Copy the state after `step` steps to the CPU."""
        tensors = {_LATENTS: latents} | solver_state(scheduler)
        if cached_steps:
            tensors[_CACHED] = torch.tensor([[cached.step, cached.num_skipped] for cached in cached_steps])
        tensors |= {f"{_CACHED}.{index}": cached.latents for index, cached in enumerate(cached_steps)}
        return cls(step, {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()})

    def restore(self, scheduler: Scheduler, device: torch.device) -> Tensor:
        """Restore the history of the solver and return the latents on `device`."""
        tensors = {name: value.to(device) for name, value in self.tensors.items()}
        restore_solver(scheduler, tensors, self.step)
        return tensors[_LATENTS]

    def cached_steps(self, device: torch.device) -> list[CachedStep]:
        """Return the step that fills the cache of each branch; empty without caches."""
        counts = self.tensors[_CACHED].tolist() if _CACHED in self.tensors else []
        return [
            CachedStep(step, num_skipped, self.tensors[f"{_CACHED}.{index}"].to(device))
            for index, (step, num_skipped) in enumerate(counts)
        ]

    def save(self, path: Path, made_by: str) -> None:
        """Write the state to a safetensors file; `made_by` names the device and the layout of the ranks."""
        save_file(self.tensors | {_STEP: torch.tensor(self.step)}, path, metadata={_MADE_BY: made_by})

    @classmethod
    def load(cls, path: Path, made_by: str) -> "DenoiseState | None":
        """Read a saved state; None if `made_by` differs, because resuming would then give other bytes.

        Raises PermanentError when the file is not a saved state.
        """
        try:
            with safe_open(path, framework="pt") as file:
                maker = (file.metadata() or {}).get(_MADE_BY)
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a mapping)
        except SafetensorError as error:
            raise PermanentError(f"{path.name} is not a saved state ({error}); remove it and render again") from error
        if not {_STEP, _LATENTS} <= tensors.keys():
            raise PermanentError(f"{path.name} has {sorted(tensors)}; expected a saved state; render again without it")
        if maker != made_by:
            get_logger().warning("state_of_others", made_by=maker, expected=made_by)
            return None
        return cls(int(tensors.pop(_STEP)), tensors)


class Interrupted(Exception):  # noqa: N818 - it is no failure: the caller asked for it
    """The clip was interrupted by its callbacks; a later render resumes from `state`."""

    def __init__(self, state: DenoiseState) -> None:
        super().__init__(f"stopped after solver step {state.step}")
        self.state = state
