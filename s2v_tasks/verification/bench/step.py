"""Measure a denoising step of the transformer, at any dimensions, with random weights.

Two variants with the same weights and inputs alternate in one process:

- "hoisted", as rendering does: everything that is constant over the steps of a clip is prepared once
- "reference", as the reference computes each forward: `bench.reference`
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import TypeVar

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from s2v_tasks.engine.acceleration.fp8 import Float8Weights
from s2v_tasks.engine.acceleration.offload import BlockOffload, keep_blocks_on_host
from s2v_tasks.engine.distributed.mesh import BranchSplit, Layout, choose_layout, parallelize
from s2v_tasks.engine.models.attention import attention_kernel, kernel_name
from s2v_tasks.engine.models.audio import NUM_FEATURE_LAYERS
from s2v_tasks.engine.models.config import S2VConfig
from s2v_tasks.engine.models.forward_inputs import ClipTokens, Conditioning
from s2v_tasks.engine.models.layers import MOTION_LATENTS
from s2v_tasks.engine.models.transformer import S2VTransformer
from s2v_tasks.engine.options import WeightsDtype
from s2v_tasks.engine.worker import Worker
from s2v_tasks.verification.bench.reference import ClipTensors, reference_forward

_LATENT_CHANNELS = 16
MOST_KERNELS = 25
Result = TypeVar("Result")
_GUIDE_SCALE = 4.5


@dataclass(frozen=True)
class StepBench:
    """The clip and options to measure: without a pose video, by default a later clip of a chain, with motion tokens."""

    config: S2VConfig
    latent_shape: tuple[int, int, int]  # T, h, w
    repeats: int = 3
    attention: str = "auto"
    parallel_layout: str = "auto"
    first_clip: bool = False  # without motion tokens
    guided: bool = True
    compiled: bool = False
    weights_dtype: WeightsDtype = "auto"
    offload: bool = False  # blocks in host memory
    with_reference: bool = True


@dataclass(frozen=True)
class StepResult:
    """One variant. `max_abs_diff`: largest difference of its velocity to that of the first variant."""

    name: str
    seconds_per_step: float
    max_abs_diff: float


@dataclass(frozen=True)
class KernelTime:
    """One kernel, or on a CPU one operator without those that it calls."""

    name: str
    seconds: float
    calls: int
    share: float  # of the time of all


@dataclass(frozen=True)
class StepReport:
    """The measurements and their conditions."""

    rows: tuple[StepResult, ...]
    layout: Layout
    num_parameters: int
    precision: str
    attention: str  # the kernel that was used
    peak_memory_bytes: int | None  # of the GPU, weights included; None on a CPU
    velocity: Tensor  # of "hoisted", on the CPU
    kernels: tuple[KernelTime, ...] = ()  # the longest of "hoisted", where asked for


@dataclass(frozen=True)
class Inputs:
    """Inputs of the transformer."""

    latents: Tensor
    timestep: Tensor
    reference: Tensor
    motion: Tensor | None
    contexts: tuple[Tensor, Tensor]  # prompt, negative prompt
    features: tuple[Tensor, Tensor]  # speech, silence


def bench_step(bench: StepBench, worker: Worker, *, profile: bool = False) -> StepReport:
    """Measure a step on all ranks of the worker; every rank calls it.

    "reference" is a later clip on one rank: with several ranks, and of a first clip, only "hoisted" is measured.

    Raises ConfigurationError for an unsupported layout, attention kernel or type of weights.
    """
    device = worker.device
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    transformer, kernel = bench_transformer(bench, device, dtype)
    num_parameters = sum(parameter.numel() for parameter in transformer.parameters())
    layout = (
        choose_layout(worker.world_size, bench.config.num_heads, guided=bench.guided)
        if bench.parallel_layout == "auto"
        else Layout.parse(bench.parallel_layout)
    )
    branches = parallelize(transformer, layout, device.type, guided=bench.guided)
    with torch.inference_mode():
        inputs = draw_inputs(bench, device, dtype)
        variants = {"hoisted": prepared_step(transformer, inputs, bench, branches)}
        if worker.world_size == 1 and bench.with_reference and inputs.motion is not None:
            variants["reference"] = _reference(transformer, inputs, inputs.motion, guided=bench.guided)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        rows, velocity = _measure(variants, bench.repeats, device)
        kernels = longest_kernels(variants["hoisted"], device) if profile and worker.world_size == 1 else []
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    precision = str(dtype).removeprefix("torch.")
    return StepReport(rows, layout, num_parameters, precision, kernel, peak, velocity, tuple(kernels))


def bench_transformer(bench: StepBench, device: torch.device, dtype: torch.dtype) -> tuple[S2VTransformer, str]:
    """Return a transformer with random weights and the options of `bench`, and the name of its attention kernel."""
    transformer = random_transformer(bench.config, device, dtype)
    if bench.weights_dtype != "auto":
        float8 = Float8Weights(transformer, bench.weights_dtype, device, dtype)
        for key, weight in transformer.state_dict().items():
            transformer.load_state_dict({key: float8(key, weight)}, strict=False, assign=True)
    if bench.offload:
        keep = keep_blocks_on_host(device)
        for key, weight in transformer.state_dict().items():
            transformer.load_state_dict({key: keep(key, weight)}, strict=False, assign=True)
        transformer.lend_block = BlockOffload(list(transformer.blocks), device).lend
    kernel = kernel_name(bench.attention, device)
    transformer.choose_kernels(attention_kernel(kernel, device), compiled=bench.compiled)
    return transformer, kernel


def random_transformer(config: S2VConfig, device: torch.device, dtype: torch.dtype) -> S2VTransformer:
    """Return a transformer on `device` with small random weights, equal on every rank, without a copy elsewhere."""
    with torch.device("meta"):
        transformer = S2VTransformer(config)
    transformer = transformer.to(dtype).to_empty(device=device).eval().requires_grad_(requires_grad=False)
    generator = torch.Generator(device).manual_seed(0)
    for parameter in transformer.parameters():
        parameter.normal_(std=0.02, generator=generator)
    return transformer


def draw_inputs(bench: StepBench, device: torch.device, dtype: torch.dtype) -> Inputs:
    """Return random inputs, the same for each call."""
    config, (num_latents, height, width) = bench.config, bench.latent_shape
    generator = torch.Generator(device).manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device, dtype=dtype)

    speech = draw(4 * num_latents, NUM_FEATURE_LAYERS, config.audio_dim)
    return Inputs(
        latents=draw(1, _LATENT_CHANNELS, num_latents, height, width),
        timestep=torch.tensor([749], device=device),
        reference=draw(1, _LATENT_CHANNELS, 1, height, width),
        motion=None if bench.first_clip else draw(1, _LATENT_CHANNELS, MOTION_LATENTS, height, width),
        contexts=(draw(config.text_len // 8, config.text_dim), draw(config.text_len // 4, config.text_dim)),
        features=(speech, torch.zeros_like(speech)),
    )


def prepared_step(
    transformer: S2VTransformer, inputs: Inputs, bench: StepBench, branches: BranchSplit | None = None
) -> Callable[[], Tensor]:
    """Prepare everything that is constant over the steps; return the function that computes one step's velocity."""
    clip_tokens = clip_tokens_of(transformer, inputs)
    conditionings = [conditioning_of(transformer, inputs, branch) for branch in range(1 + bench.guided)]
    mine = conditionings if branches is None or not bench.guided else branches.mine(conditionings)

    def step() -> Tensor:
        velocities = transformer(inputs.latents, inputs.timestep, clip_tokens, mine)
        if not bench.guided:
            return velocities[0]  # type: ignore[no-any-return]
        cond, uncond = velocities if branches is None else branches.exchange(velocities[0])
        return _guided(cond, uncond)

    return step


def _reference(transformer: S2VTransformer, inputs: Inputs, motion: Tensor, *, guided: bool) -> Callable[[], Tensor]:
    def forward(branch: int) -> Tensor:
        clip = ClipTensors(inputs.reference, motion, inputs.contexts[branch], inputs.features[branch])
        return reference_forward(transformer, inputs.latents, inputs.timestep, clip)

    return (lambda: _guided(forward(0), forward(1))) if guided else lambda: forward(0)


def _guided(cond: Tensor, uncond: Tensor) -> Tensor:
    return uncond + _GUIDE_SCALE * (cond - uncond)


def clip_tokens_of(transformer: S2VTransformer, inputs: Inputs) -> ClipTokens:
    """Return the prepared tokens and positions of the clip."""
    return transformer.prepare_clip_tokens(inputs.latents.shape[2], inputs.reference, inputs.motion, None)


def conditioning_of(transformer: S2VTransformer, inputs: Inputs, branch: int) -> Conditioning:
    """Return the conditioning of a branch: 0 with the prompt (cond), 1 with the negative prompt (uncond)."""
    name = ("cond", "uncond")[branch]
    return transformer.prepare_conditioning(inputs.contexts[branch], inputs.features[branch], name)


def _measure(
    variants: dict[str, Callable[[], Tensor]], repeats: int, device: torch.device
) -> tuple[tuple[StepResult, ...], Tensor]:
    """Return the median time of each variant after a warm-up, and the last velocity of the first variant.

    The variants alternate, so that other load on the machine affects all.
    """
    velocities = {name: step() for name, step in variants.items()}  # also warms up
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(repeats):
        for name, step in variants.items():
            velocities[name], needed = timed(step, device)
            seconds[name].append(needed)
    first = next(iter(velocities.values()))
    results = (
        StepResult(name, median(seconds[name]), (velocity - first).abs().max().item())
        for name, velocity in velocities.items()
    )
    return tuple(results), first.cpu()


def timed(compute: Callable[[], Result], device: torch.device) -> tuple[Result, float]:
    """Return the result and the seconds of `compute`, without those of work that the GPU has queued before."""
    _wait_for(device)
    started = time.perf_counter()
    result = compute()
    _wait_for(device)
    return result, time.perf_counter() - started


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def longest_kernels(compute: Callable[[], object], device: torch.device) -> list[KernelTime]:
    """Run `compute` once under the profiler and return its longest kernels, the longest first."""
    on_gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as profiler:
        compute()
        _wait_for(device)
    averages = profiler.key_averages()
    times = {
        event.key: ((event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1e6, event.count)
        for event in averages
    }
    total = sum(seconds for seconds, _ in times.values()) or 1.0
    longest = sorted(times.items(), key=lambda item: item[1][0], reverse=True)[:MOST_KERNELS]
    return [KernelTime(name, seconds, calls, seconds / total) for name, (seconds, calls) in longest if seconds > 0]
