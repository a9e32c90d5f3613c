"""Measure the first-block cache: time and error of a whole denoising with random weights, at several thresholds.

Every threshold starts from the same noise. The error is the relative difference of the final latents to those without a
cache. Random weights show that the cache works and how the skipped share and the error are related; the threshold for
the released weights must be found with those.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from s2v_tasks.engine.clip import Sampling
from s2v_tasks.engine.encoders.vae import Vae
from s2v_tasks.engine.options import EngineOptions
from s2v_tasks.engine.pipeline import S2VPipeline
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
    relative_error: float


@torch.inference_mode()
def bench_cache(
    bench: StepBench, num_steps: int, thresholds: Sequence[float], device: torch.device
) -> list[CacheResult]:
    """Denoise without a cache, then with each of the `thresholds`."""
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    transformer = random_transformer(bench.config, device, dtype)
    with torch.device("meta"):
        never_used = AutoencoderKLWan(base_dim=8)
    inputs = draw_inputs(bench, device, dtype)
    clip_tokens = clip_tokens_of(transformer, inputs)
    conditionings = (conditioning_of(transformer, inputs, 0), conditioning_of(transformer, inputs, 1))
    sampling = Sampling(num_steps, _GUIDE_SCALE, _SHIFT, "unipc")
    results: list[CacheResult] = []
    exact: Tensor | None = None
    for threshold in (0.0, *thresholds):
        options = EngineOptions(step_cache=threshold)
        pipeline = S2VPipeline(transformer, Vae(never_used, device), device, dtype, options=options)
        started = time.perf_counter()
        denoising = pipeline.start_denoising(inputs.latents[0], conditionings, sampling)
        latents = pipeline.denoise(denoising, clip_tokens, sampling).cpu()
        seconds = time.perf_counter() - started
        exact = latents if exact is None else exact
        error = (latents - exact).norm() / exact.norm()
        results.append(CacheResult(threshold, seconds, pipeline.skipped_share, error.item()))
    return results
