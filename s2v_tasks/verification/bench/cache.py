"""Measure the first-block cache at several thresholds: time, and the error that it makes.

Every threshold starts from the same noise and is compared with no cache. Random weights show that the cache works. The
share that it skips and the error depend on the weights: `bench_cache_of_clip` renders a clip with those of a snapshot.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import log10

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from numpy.typing import NDArray
from torch import Tensor

from s2v_tasks.engine.clip import ClipInputs, Sampling
from s2v_tasks.engine.conditions import NEGATIVE_PROMPT, encode_conditions
from s2v_tasks.engine.encoders.vae import Vae
from s2v_tasks.engine.images import ImageU8
from s2v_tasks.engine.loading import Snapshot
from s2v_tasks.engine.loading.networks import load_pipeline
from s2v_tasks.engine.options import EngineOptions
from s2v_tasks.engine.pipeline import S2VPipeline
from s2v_tasks.engine.worker import Worker
from s2v_tasks.verification.bench.step import (
    StepBench,
    clip_tokens_of,
    conditioning_of,
    draw_inputs,
    random_transformer,
)

_GUIDE_SCALE = 4.5
_SHIFT = 3.0


@dataclass(frozen=True)
class CacheResult:
    """Measurements of one threshold; 0 is the denoising without a cache."""

    threshold: float
    seconds: float
    skipped_share: float  # of all forwards
    relative_error: float  # of the final latents, or of the frames 0..255
    psnr_db: float | None = None  # of the frames; None: equal frames, or no frames


@torch.inference_mode()
def bench_cache(
    bench: StepBench, num_steps: int, thresholds: Sequence[float], device: torch.device
) -> list[CacheResult]:
    """Denoise with random weights, without a cache and then with each of the `thresholds`."""
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    transformer = random_transformer(bench.config, device, dtype)
    with torch.device("meta"):
        never_used = AutoencoderKLWan(base_dim=8)
    inputs = draw_inputs(bench, device, dtype)
    clip_tokens = clip_tokens_of(transformer, inputs)
    conditionings = (conditioning_of(transformer, inputs, 0), conditioning_of(transformer, inputs, 1))
    pipeline = S2VPipeline(transformer, Vae(never_used, device), device, dtype)

    def denoise(num_steps: int = num_steps) -> Tensor:
        sampling = Sampling(num_steps, _GUIDE_SCALE, _SHIFT, "unipc")
        denoising = pipeline.start_denoising(inputs.latents[0], conditionings, sampling)
        return pipeline.denoise(denoising, clip_tokens, sampling).cpu()

    denoise(1)  # the first forward of a process chooses kernels and allocates memory
    return _results(pipeline, thresholds, denoise)


@dataclass(frozen=True)
class BenchedClip:
    """The first clip of a video, as its request describes it."""

    prompt: str
    image_u8: ImageU8  # [Hi, Wi, 3]
    speech: NDArray[np.float32]  # mono at 16 kHz
    width: int
    height: int
    num_frames: int
    sampling: Sampling


def bench_cache_of_clip(
    snapshot: Snapshot, clip: BenchedClip, thresholds: Sequence[float], device: torch.device
) -> list[CacheResult]:
    """Render a clip with the weights of `snapshot`, without a cache and then with each of the `thresholds`."""
    conditions = encode_conditions(
        snapshot,
        prompt=clip.prompt,
        negative_prompt=NEGATIVE_PROMPT,
        waveform=clip.speech,
        image_u8=clip.image_u8,
        num_frames=clip.num_frames,
        width=clip.width,
        height=clip.height,
        device=device,
    )
    reference_u8 = conditions.pop("reference_u8")
    inputs = ClipInputs(
        reference_u8,
        **conditions,
        pose=None,
        seed=0,
        motion=None,
        start_from_ref=False,
        keep_motion_frames=None,
    )
    guided = clip.sampling.is_guided
    pipeline, _ = load_pipeline(Worker(0, 1, device), snapshot, "auto", EngineOptions(), guided=guided)
    pipeline.render_clip(inputs, replace(clip.sampling, sample_steps=1))  # the first render of a process is slower

    def render() -> Tensor:
        return torch.from_numpy(pipeline.render_clip(inputs, clip.sampling).frames_u8).float()

    return _results(pipeline, thresholds, render, peak=255.0)


def _results(
    pipeline: S2VPipeline, thresholds: Sequence[float], run: Callable[[], Tensor], peak: float | None = None
) -> list[CacheResult]:
    results: list[CacheResult] = []
    exact: Tensor | None = None
    options = pipeline.options
    for threshold in (0.0, *thresholds):
        pipeline.options = replace(options, step_cache=threshold)
        started = time.perf_counter()
        result = run()
        seconds = time.perf_counter() - started
        exact = result if exact is None else exact
        difference = result - exact
        rms = difference.square().mean().sqrt().item()
        psnr_db = 20 * log10(peak / rms) if peak and rms else None
        error = (difference.norm() / exact.norm()).item()
        results.append(CacheResult(threshold, seconds, pipeline.skipped_share, error, psnr_db))
    return results
