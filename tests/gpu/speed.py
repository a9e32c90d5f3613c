"""Sections that measure the transformer: attention alone, whole steps, their kernels, and options."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from s2v_tasks.engine.models.attention import ATTENTION_KERNELS, attention_kernel
from s2v_tasks.engine.models.config import S2VConfig
from s2v_tasks.engine.worker import Worker
from s2v_tasks.errors import ConfigurationError
from s2v_tasks.verification.bench.cache import bench_cache
from s2v_tasks.verification.bench.step import (
    StepBench,
    bench_step,
    bench_transformer,
    draw_inputs,
    longest_kernels,
    prepared_step,
)
from tests.gpu.machine import Clock, Machine, Rows, step_flops

# W, H, frames: the presets' sizes for a picture of about 16:9, and the tokens of a later clip of them.
SIZES = ((832, 448, 80), (1024, 704, 80))
TOKENS = (32_760, 63_360)
_TINY_SIZES = ((64, 64, 8), (128, 64, 8))
_TINY_CONFIG = S2VConfig(
    dim=64, ffn_dim=96, num_heads=2, num_layers=3, freq_dim=16, text_dim=12, text_len=16, audio_dim=6,
    audio_inject_layers=(0, 2),
)  # fmt: skip
# Variants run with a quarter of the layers: a step's seconds grow with them.
_VARIANT_LAYERS = 10
_CACHE_STEPS, _CACHE_THRESHOLD = 6, 0.05
_ONE_BRANCH = "without guidance"
# Solver steps of a clip: with the preset `high`, guided; with `preview`, without guidance.
_FULL_CLIP_STEPS, _PREVIEW_STEPS = 40, 4
# The least seconds for one more variant, and for a step with all layers.
_VARIANT_SECONDS, _FULL_SECONDS = 15.0, 40.0


def attention(machine: Machine, _clock: Clock) -> Rows:
    """Time each available kernel: self attention at the tokens of both sizes, text, and audio injection."""
    rows: Rows = []
    heads, width = (2, 32) if machine.tiny else (40, 128)
    for tokens in (48, 96) if machine.tiny else TOKENS:
        frames = 20
        shapes = {
            "self": (1, tokens, tokens),
            "text": (1, tokens, 512),
            "audio": (frames, tokens // frames, 5),
        }
        for what, (batch, queries, keys) in shapes.items():
            q, k, v = (
                torch.randn(batch, count, heads, width, device=machine.device, dtype=machine.dtype)
                for count in (queries, keys, keys)
            )
            for name in ATTENTION_KERNELS:
                rows.append({"name": f"{what} {tokens}", "kernel": name} | _attention(machine, name, (q, k, v)))
    return rows


def _attention(machine: Machine, name: str, qkv: tuple[Tensor, Tensor, Tensor]) -> dict[str, Any]:
    try:
        attend = attention_kernel(name, machine.device)
        seconds, _ = machine.timed(partial(attend, *qkv), repeats=2)
    except (ConfigurationError, RuntimeError) as error:
        return {"not_here": str(error).splitlines()[0][:100]}
    batch, queries, heads, width = qkv[0].shape
    flops = 4 * batch * queries * qkv[1].shape[1] * heads * width
    return {"ms": seconds * 1e3, "tflops": flops / seconds / 1e12}


def full_step(machine: Machine, clock: Clock) -> Rows:
    """Time a guided step with all layers, eager, at both sizes: seconds, MFU, peak memory."""
    rows: Rows = []
    for size in _sizes(machine):
        if clock.left_seconds < _FULL_SECONDS and not machine.tiny:
            rows.append({"name": _named(size), "left_out": True})
            continue
        rows.append({"name": _named(size)} | _step(machine, size, _config(machine, all_layers=True)))
    return rows


def profile_of_step(machine: Machine, _clock: Clock) -> Rows:
    """List the slowest kernels of a step, with a quarter of the layers at the smaller size."""
    bench = _bench(_sizes(machine)[0], _config(machine))
    with torch.inference_mode():
        transformer, _ = bench_transformer(bench, machine.device, machine.dtype)
        step = prepared_step(transformer, draw_inputs(bench, machine.device, machine.dtype), bench)
        step()
        kernels = longest_kernels(step, machine.device)
    return [
        {"name": kernel.name[:90], "ms": kernel.seconds * 1e3, "calls": kernel.calls, "share": kernel.share}
        for kernel in kernels
    ]


def variants(machine: Machine, clock: Clock) -> Rows:
    """Time the options at both sizes with a quarter of the layers; `ratio` compares with the default of that size."""
    rows: Rows = []
    options: dict[str, dict[str, Any]] = {
        "default": {},
        "flash": {"attention": "flash"},
        "cudnn": {"attention": "cudnn"},
        _ONE_BRANCH: {"guided": False},
        "offload": {"offload": True},
        "compile": {"compiled": not machine.tiny},
        "fp8": {"weights_dtype": "fp8"},
        "fp8-dynamic, compile": {"weights_dtype": "fp8-dynamic", "compiled": not machine.tiny},
    }
    for size in _sizes(machine):
        eager: float | None = None
        for name, fields in options.items():
            if clock.left_seconds < _VARIANT_SECONDS and not machine.tiny:
                return [*rows, {"name": f"{_named(size)} {name}", "left_out": True}]
            row = _tried(partial(_step, machine, size, _config(machine), **fields))
            eager = eager or row.get("seconds")
            ratio = {"ratio": eager / row["seconds"]} if eager and "seconds" in row else {}
            rows.append({"name": f"{_named(size)} {name}"} | row | ratio)
            if name == _ONE_BRANCH and ratio:
                preview = _FULL_CLIP_STEPS / _PREVIEW_STEPS * ratio["ratio"]
                rows.append({"name": f"{_named(size)} solver steps of a preview", "ratio": preview})
        rows += _cache(machine, size)
    return rows


def _cache(machine: Machine, size: tuple[int, int, int]) -> Rows:
    bench = _bench(size, _config(machine))
    full, cached = bench_cache(bench, _CACHE_STEPS, [_CACHE_THRESHOLD], machine.device)
    return [
        {
            "name": f"{_named(size)} first-block cache {_CACHE_THRESHOLD}",
            "ratio": full.seconds / cached.seconds,
            "left_out_forwards": cached.skipped_share,
            "relative_error": cached.relative_error,
        }
    ]


def _step(machine: Machine, size: tuple[int, int, int], config: S2VConfig, **fields: Any) -> dict[str, Any]:
    report = bench_step(replace(_bench(size, config), **fields), Worker(0, 1, machine.device))
    seconds = report.rows[0].seconds_per_step
    flops, tokens = step_flops(config, *size)
    row: dict[str, Any] = {
        "seconds": seconds,
        "layers": config.num_layers,
        "tokens": tokens,
        "kernel": report.attention,
    }
    if machine.peak_flops is not None:
        row["mfu"] = flops / seconds / machine.peak_flops
    if report.peak_memory_bytes is not None:
        row["peak_gib"] = report.peak_memory_bytes / 2**30
    return row


def _tried(measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return measure()
    except (ConfigurationError, RuntimeError) as error:
        return {"not_here": str(error).splitlines()[0][:100]}


def _bench(size: tuple[int, int, int], config: S2VConfig) -> StepBench:
    width, height, num_frames = size
    return StepBench(config, (num_frames // 4, height // 8, width // 8), repeats=1, with_reference=False)


def _config(machine: Machine, *, all_layers: bool = False) -> S2VConfig:
    if machine.tiny:
        return _TINY_CONFIG
    if all_layers:
        return S2VConfig()
    injected = tuple(layer for layer in S2VConfig.audio_inject_layers if layer < _VARIANT_LAYERS)
    return S2VConfig(num_layers=_VARIANT_LAYERS, audio_inject_layers=injected)


def _sizes(machine: Machine) -> tuple[tuple[int, int, int], ...]:
    return _TINY_SIZES if machine.tiny else SIZES


def _named(size: tuple[int, int, int]) -> str:
    return "x".join(map(str, size))
