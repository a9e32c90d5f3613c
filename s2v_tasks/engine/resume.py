"""A clip that was stopped between two solver steps, as tensors: it goes on elsewhere as if it had never stopped."""

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

_STEP, _LATENTS, _BASES, _MADE_BY = "step", "latents", "bases", "made_by"


@dataclass(frozen=True)
class Basis:
    """The last solver step that a guidance branch computed in full: computed again, its `StepMemory` is there again."""

    step: int
    num_skipped: int  # steps that were taken from memory so far
    latents: Tensor  # before the step


@dataclass(frozen=True)
class DenoiseState:
    """What denoising knows after `step` solver steps: the latents, and what the solver and the memories remember."""

    step: int
    tensors: dict[str, Tensor]

    @classmethod
    def capture(cls, step: int, latents: Tensor, scheduler: Scheduler, bases: Sequence[Basis] = ()) -> "DenoiseState":
        """The state after `step` steps, on the CPU."""
        tensors = {_LATENTS: latents} | solver_state(scheduler)
        if bases:
            tensors[_BASES] = torch.tensor([[basis.step, basis.num_skipped] for basis in bases])
        tensors |= {f"{_BASES}.{index}": basis.latents for index, basis in enumerate(bases)}
        return cls(step, {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()})

    def restore(self, scheduler: Scheduler, device: torch.device) -> Tensor:
        """Put the solver where it was; returns the latents on `device`."""
        tensors = {name: value.to(device) for name, value in self.tensors.items()}
        restore_solver(scheduler, tensors, self.step)
        return tensors[_LATENTS]

    def bases(self, device: torch.device) -> list[Basis]:
        """What the memories of the branches rest on; nothing where none were used."""
        counts = self.tensors[_BASES].tolist() if _BASES in self.tensors else []
        return [
            Basis(step, num_skipped, self.tensors[f"{_BASES}.{index}"].to(device))
            for index, (step, num_skipped) in enumerate(counts)
        ]

    def save(self, path: Path, made_by: str) -> None:
        """Write the state to a safetensors file; `made_by` names the device and the layout of the ranks."""
        save_file(self.tensors | {_STEP: torch.tensor(self.step)}, path, metadata={_MADE_BY: made_by})

    @classmethod
    def load(cls, path: Path, made_by: str) -> "DenoiseState | None":
        """Read what `save` wrote; None where others made it: going on from there would give other bytes.

        Raises PermanentError when the file is no state.
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
    """The clip was stopped because the caller's `interrupted` said so; `state` is where it stopped."""

    def __init__(self, state: DenoiseState) -> None:
        super().__init__(f"stopped after solver step {state.step}")
        self.state = state
