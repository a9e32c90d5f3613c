"""A denoising in progress: its solver, its guidance branches, and its saved state.

Another process can resume from the saved state, with bit-identical results.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from s2v_tasks.engine.acceleration.first_block_cache import CacheContext, FirstBlockCache
from s2v_tasks.engine.images import is_finite
from s2v_tasks.engine.models.forward_inputs import Conditioning, LayerInputs, RunLayer
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

    @property
    def is_finite(self) -> bool:
        """Return True if no tensor has NaN or infinite values, which a later attempt must not continue."""
        return all(is_finite(tensor) for tensor in self.tensors.values())

    def save(self, path: Path, made_by: str) -> None:
        """Write the state to a safetensors file; `made_by` names the device and the layout of the ranks."""
        save_file(self.tensors | {_STEP: torch.tensor(self.step)}, path, metadata={_MADE_BY: made_by})

    @classmethod
    def load(cls, path: Path, made_by: str) -> "DenoiseState | None":
        """Read a saved state; None if `made_by` differs, because a resumed render would give other bytes.

        Raises PermanentError if the file is not a saved state.
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


@dataclass
class Denoising:
    """The latents `[1, 16, T, h, w]` after `step` solver steps, with the solver and the branches of this rank."""

    scheduler: Scheduler
    branches_at: Callable[[int], Sequence[Conditioning]]  # that this rank computes at a step
    latents: Tensor
    cache: FirstBlockCache | None = None  # without it every block runs at every step
    step: int = 0
    # By branch: the last step whose blocks all ran. An interrupted step does not count.
    _cached: dict[str, CachedStep] = field(default_factory=dict)

    def begin_step(self) -> Sequence[Conditioning]:
        """Return the branches of the next step. When guidance begins or ends, the cache is cleared on all ranks."""
        branches = self.branches_at(self.step)
        if self.cache is not None and self.step:
            names, earlier = ([branch.name for branch in self.branches_at(step)] for step in (self.step, self.step - 1))
            if names != earlier:
                self.cache.restart(names[0])
        return branches

    def advance(self, prediction: Tensor, timestep: Tensor) -> None:
        """Take a solver step with the noise prediction of this step."""
        contexts = {} if self.cache is None else self.cache.contexts
        self._cached = {name: self._cached_step(name, context) for name, context in contexts.items()}
        self.latents = self.scheduler.step(prediction, timestep, self.latents, return_dict=False)[0]
        self.step += 1

    def _cached_step(self, name: str, context: CacheContext) -> CachedStep:
        if context.computed:
            return CachedStep(self.step, context.num_skipped, self.latents)
        return replace(self._cached[name], num_skipped=context.num_skipped)

    def state(self) -> DenoiseState:
        """Return the state from which another process continues with the next solver step, on the CPU."""
        return DenoiseState.capture(self.step, self.latents, self.scheduler, list(self._cached.values()))

    def restore(self, state: DenoiseState, compute: Callable[[Tensor, Tensor, Conditioning], None]) -> None:
        """Continue from `state`. `compute`, which predicts noise, fills the first-block cache again."""
        device = self.latents.device
        self.latents, self.step = state.restore(self.scheduler, device), state.step
        if self.cache is None or not self.step:
            return
        for conditioning, cached in zip(self.branches_at(self.step - 1), state.cached_steps(device), strict=False):
            compute(cached.latents, self.scheduler.timesteps[cached.step], conditioning)
            self.cache.contexts[conditioning.name].num_skipped = cached.num_skipped
            self._cached[conditioning.name] = cached

    @property
    def skipped_share(self) -> float:
        """Return the share of forwards of the clip so far whose later blocks the first-block cache skipped."""
        if self.cache is None or not self.step:
            return 0.0
        return self.cache.num_skipped / sum(len(self.branches_at(step)) for step in range(self.step))


class InterruptionCheck:
    """A layer hook that raises Interrupted with the state of `denoising` if `is_interrupted` returns True.

    It checks twice per forward: after the first layer and after half of the layers.
    """

    def __init__(self, denoising: Denoising, is_interrupted: Callable[[], bool]) -> None:
        self._denoising, self._is_interrupted = denoising, is_interrupted

    def __call__(self, run: RunLayer, layer: int, states: list[Tensor], inputs: LayerInputs, /) -> list[Tensor]:
        num_layers = len(inputs.conditionings[0].text)
        if layer in (1, (num_layers + 1) // 2) and self._is_interrupted():
            raise Interrupted(self._denoising.state())
        return run(layer, states, inputs)
