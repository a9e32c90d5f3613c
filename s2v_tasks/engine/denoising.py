"""A denoising in progress: its solver, its guidance branches, and the state from which it can resume."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from s2v_tasks.engine.acceleration.first_block_cache import FirstBlockCache
from s2v_tasks.engine.models.transformer import Conditioning
from s2v_tasks.engine.resume import CachedStep, DenoiseState
from s2v_tasks.engine.schedulers import Scheduler


class Branch:
    """One guidance branch (cond or uncond) over the steps of a clip; without `cache` every block runs at every step."""

    def __init__(self, conditioning: Conditioning, cache: FirstBlockCache | None) -> None:
        self.conditioning, self.cache = conditioning, cache
        self._computed: tuple[int, Tensor] | None = None
        self._num_skipped = 0  # after the last finished step; an interrupted one does not count

    def finish_step(self, step: int, latents: Tensor) -> None:
        """Note that solver step `step` was done from `latents`."""
        if self.cache is None:
            return
        self._num_skipped = self.cache.num_skipped
        if self.cache.computed:
            self._computed = step, latents

    def resume(self, cached: CachedStep) -> None:
        """Take over the counts of an earlier process; the cached step was computed again."""
        if self.cache is not None:
            self.cache.num_skipped = cached.num_skipped
        self.finish_step(cached.step, cached.latents)

    @property
    def cached_step(self) -> CachedStep | None:
        """The step from which the cache can be computed again; None without a cache."""
        if self.cache is None or self._computed is None:
            return None
        step, latents = self._computed
        return CachedStep(step, self._num_skipped, latents)


@dataclass
class Denoising:
    """The latents `[1, 16, T, h, w]` after `step` solver steps, with the solver and the branches of this rank."""

    scheduler: Scheduler
    branches: Sequence[Branch]
    latents: Tensor
    step: int = 0

    def advance(self, prediction: Tensor, timestep: Tensor) -> None:
        """Take a solver step with the noise prediction of this step."""
        for branch in self.branches:
            branch.finish_step(self.step, self.latents)
        self.latents = self.scheduler.step(prediction, timestep, self.latents, return_dict=False)[0]
        self.step += 1

    def state(self) -> DenoiseState:
        """Return the state from which another process continues with the next solver step, on the CPU."""
        cached_steps = [branch.cached_step for branch in self.branches if branch.cached_step is not None]
        return DenoiseState.capture(self.step, self.latents, self.scheduler, cached_steps)

    def restore(self, state: DenoiseState, device: torch.device) -> list[CachedStep]:
        """Continue from `state`; returns the steps that fill the caches when they are computed again."""
        self.latents, self.step = state.restore(self.scheduler, device), state.step
        return state.cached_steps(device)

    @property
    def skipped_share(self) -> float:
        """The share of the forwards of the clip so far whose later blocks the first-block cache skipped."""
        num_skipped = sum(branch.cache.num_skipped for branch in self.branches if branch.cache is not None)
        return num_skipped / (self.step * len(self.branches)) if self.step else 0.0
