"""A clip that was stopped between two solver steps, as tensors: it goes on elsewhere as if it had never stopped."""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from s2v_tasks.engine.schedulers import Scheduler, restore_solver, solver_state
from s2v_tasks.errors import PermanentError

_STEP, _LATENTS = "step", "latents"


@dataclass(frozen=True)
class DenoiseState:
    """What denoising knows after `step` solver steps: the latents, and what the solver remembers."""

    step: int
    tensors: dict[str, Tensor]

    @classmethod
    def capture(cls, step: int, latents: Tensor, scheduler: Scheduler) -> "DenoiseState":
        """The state after `step` steps, on the CPU."""
        tensors = {_LATENTS: latents} | solver_state(scheduler)
        return cls(step, {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()})

    def restore(self, scheduler: Scheduler, device: torch.device) -> Tensor:
        """Put the solver where it was; returns the latents on `device`."""
        tensors = {name: value.to(device) for name, value in self.tensors.items()}
        restore_solver(scheduler, tensors, self.step)
        return tensors[_LATENTS]

    def save(self, path: Path) -> None:
        """Write the state to a safetensors file."""
        save_file(self.tensors | {_STEP: torch.tensor(self.step)}, path)

    @classmethod
    def load(cls, path: Path) -> "DenoiseState":
        """Read what `save` wrote; PermanentError when it is not that."""
        try:
            tensors = load_file(path)
        except SafetensorError as error:
            raise PermanentError(f"{path.name} is not a saved state ({error}); remove it and render again") from error
        if not {_STEP, _LATENTS} <= tensors.keys():
            raise PermanentError(f"{path.name} has {sorted(tensors)}; expected a saved state; render again without it")
        return cls(int(tensors.pop(_STEP)), tensors)


class Interrupted(Exception):  # noqa: N818 - it is no failure: the caller asked for it
    """The clip was stopped because the caller's `interrupted` said so; `state` is where it stopped."""

    def __init__(self, state: DenoiseState) -> None:
        super().__init__(f"stopped after solver step {state.step}")
        self.state = state
