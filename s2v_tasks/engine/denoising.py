"""A denoising in progress: its solver, its guidance branches, and the state from which it can resume."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from s2v_tasks.engine.acceleration.first_block_cache import CacheContext, FirstBlockCache
from s2v_tasks.engine.models.forward_inputs import Conditioning, LayerInputs, RunLayer
from s2v_tasks.engine.resume import CachedStep, DenoiseState, Interrupted
from s2v_tasks.engine.schedulers import Scheduler


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
        """Return the branches of the next step. Where guidance begins or ends, the cache starts anew on all ranks."""
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
    """A layer hook that raises Interrupted with the state of `denoising` when `is_interrupted` returns true.

    It asks twice per forward: behind the first layer, and half-way through the layers.
    """

    def __init__(self, denoising: Denoising, is_interrupted: Callable[[], bool]) -> None:
        self._denoising, self._is_interrupted = denoising, is_interrupted

    def __call__(self, run: RunLayer, layer: int, states: list[Tensor], inputs: LayerInputs, /) -> list[Tensor]:
        num_layers = len(inputs.conditionings[0].text)
        if layer in (1, (num_layers + 1) // 2) and self._is_interrupted():
            raise Interrupted(self._denoising.state())
        return run(layer, states, inputs)
