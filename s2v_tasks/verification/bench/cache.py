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
from s2v_tasks.engine.pipeline import S2VPipeline
from s2v_tasks.verification.bench.step import StepBench, draw_inputs, guidance_of, random_transformer, scene_of

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
    pipeline = S2VPipeline(transformer, Vae(never_used, device), device, dtype)
    inputs = draw_inputs(bench, device, dtype)
    scene = scene_of(transformer, inputs)
    guidances = (guidance_of(transformer, inputs, 0), guidance_of(transformer, inputs, 1))
    results: list[CacheResult] = []
    exact: Tensor | None = None
    for threshold in (0.0, *thresholds):
        sampling = Sampling(num_steps, _GUIDE_SCALE, _SHIFT, "unipc", step_cache=threshold)
        started = time.perf_counter()
        denoised, _ = pipeline.denoise(
            inputs.latents[0], scene, guidances, sampling, on_step=lambda *_: None, interrupted=lambda: False
        )
        latents = denoised.cpu()
        seconds = time.perf_counter() - started
        exact = latents if exact is None else exact
        error = (latents - exact).norm() / exact.norm()
        results.append(CacheResult(threshold, seconds, pipeline.skipped_share, error.item()))
    return results
