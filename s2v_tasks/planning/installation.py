"""The installation that a plan is made for: its presets, adapters, model and GPU, and the estimate of clips on it."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from s2v_tasks.planning.clips import clips_of_processes
from s2v_tasks.planning.estimate import ClipShape, Cost, clip_cost, compute_seconds, load_seconds, vae_seconds
from s2v_tasks.planning.memory import ONE_GPU, RenderSetup, peak_memory_gib
from s2v_tasks.schemas.catalogue import Catalogue
from s2v_tasks.schemas.model_card import GpuCard, ModelCard
from s2v_tasks.schemas.plan import Estimate, Sampling
from s2v_tasks.schemas.request import Request


@dataclass(frozen=True)
class Installation:
    """The configuration on which plans depend."""

    catalogue: Catalogue
    model: ModelCard
    gpu: GpuCard
    max_clips: int
    setup: RenderSetup = ONE_GPU

    def costs(self, shapes: Sequence[ClipShape], sampling: Sampling) -> list[Cost]:
        """Return the operations of each clip."""
        steps, guided_steps = sampling.sample_steps, sampling.guided_steps
        return [clip_cost(shape, self.model, sample_steps=steps, guided_steps=guided_steps) for shape in shapes]

    def estimate(
        self, shapes: Sequence[ClipShape], costs: Sequence[Cost], sampling: Sampling, request: Request
    ) -> Estimate:
        """Return the sum over clips in order, of which the first may continue a chain."""
        model, gpu = self.model, self.gpu
        setup, guided = self.setup.for_sampling(sampling), sampling.guided_steps > 0
        seconds = [compute_seconds(cost, gpu) for cost in costs]
        chains = list(accumulate(int(shape.starts_chain) for shape in shapes))
        chain_seconds = dict.fromkeys(chains, 0.0)
        for clips in clips_of_processes(chains, request.clips_per_pod):
            chain_seconds[chains[clips[0]]] += load_seconds(gpu, model) + sum(seconds[index] for index in clips)
        total = sum(chain_seconds.values())
        worst = total + request.max_retakes * sum(seconds) if request.quality == "gate" else None
        return Estimate(
            pflops=sum(cost.pflops for cost in costs),
            gpu=gpu.name,
            gpu_seconds=total,
            longest_chain_seconds=max(chain_seconds.values()),
            cost=total / 3600 * gpu.cost_per_hour,
            currency=gpu.currency,
            peak_gpu_memory_gib=max(peak_memory_gib(shape, model, gpu, guided=guided, setup=setup) for shape in shapes),
            vae_share=sum(vae_seconds(cost, gpu) for cost in costs) / sum(seconds),
            worst_case_gpu_seconds=worst,
            worst_case_cost=None if worst is None else worst / 3600 * gpu.cost_per_hour,
        )
