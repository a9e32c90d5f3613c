"""Sections that measure the transformer: attention alone, whole steps, their kernels, and options."""

import time
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor

from s2v_tasks.engine.models.attention import ATTENTION_KERNELS, attention_kernel, kernel_name
from s2v_tasks.engine.models.config import S2VConfig
from s2v_tasks.engine.worker import Worker
from s2v_tasks.verification.bench.cache import bench_cache
from s2v_tasks.verification.bench.step import (
    StepBench,
    bench_step,
    bench_transformer,
    draw_inputs,
    longest_kernels,
    prepared_step,
)
from tests.gpu.machine import Clock, Machine, Rows, not_here, step_flops, tried

# W, H, frames: the presets' sizes for a picture of about 16:9, and the tokens of a later clip of them.
SIZES = ((832, 448, 80), (1024, 704, 80))
TOKENS = (32_760, 63_360)
_TINY_SIZES = ((64, 64, 8), (128, 64, 8))
_TINY_CONFIG = S2VConfig(
    dim=64, ffn_dim=96, num_heads=2, num_layers=3, freq_dim=16, text_dim=12, text_len=16, audio_dim=6,
    audio_inject_layers=(0, 2),
)  # fmt: skip
# Variants run with a part of the 40 layers, at each size: a step's seconds grow with them.
_VARIANT_LAYERS = (10, 5)
_CACHE_STEPS, _CACHE_THRESHOLD = 4, 0.05
_DEFAULT, _ONE_BRANCH, _OFFLOAD = "default", "without guidance", "offload"
_CACHE = f"first-block cache {_CACHE_THRESHOLD}"
_VARIANTS: dict[str, dict[str, Any]] = {
    _DEFAULT: {},
    _ONE_BRANCH: {"guided": False},
    _OFFLOAD: {"offload": True},
    "fp8": {"weights_dtype": "fp8"},
    _CACHE: {},
    "flash": {"attention": "flash"},
    "cudnn": {"attention": "cudnn"},
    "compile": {"compiled": True},
    "fp8-dynamic, compile": {"weights_dtype": "fp8-dynamic", "compiled": True},
}
# Solver steps of a clip: with the preset `high`, guided; with `preview`, without guidance.
_FULL_CLIP_STEPS, _PREVIEW_STEPS = 40, 4
# The least seconds for one more variant, for the first one that compiles, and for a step with all layers.
_VARIANT_SECONDS, _COMPILE_SECONDS, _FULL_SECONDS = 15.0, 60.0, 40.0


def attention(machine: Machine, _clock: Clock) -> Rows:
    """Time each available kernel: self attention at the tokens of both sizes, text, and audio injection."""
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
                yield {"name": f"{what} {tokens}", "kernel": name} | _attention(machine, name, (q, k, v))


def _attention(machine: Machine, name: str, qkv: tuple[Tensor, Tensor, Tensor]) -> dict[str, Any]:
    try:
        attend = attention_kernel(name, machine.device)
        attend(*qkv)
        seconds, _ = machine.timed(partial(attend, *qkv), repeats=2)
    except Exception as error:  # noqa: BLE001 - the reason why this kernel is not measured
        return not_here(error)
    batch, queries, heads, width = qkv[0].shape
    flops = 4 * batch * queries * qkv[1].shape[1] * heads * width
    return {"ms": seconds * 1e3, "tflops": flops / seconds / 1e12}


def full_step(machine: Machine, clock: Clock) -> Rows:
    """Time a guided step with all layers, eager, at both sizes: seconds, MFU, peak memory."""
    for size in _sizes(machine):
        if clock.left_seconds < _FULL_SECONDS and not machine.tiny:
            yield {"name": _named(size), "left_out": True}
            return
        yield {"name": _named(size)} | _step(machine, size, _config(machine, size=None))


def profile_of_step(machine: Machine, _clock: Clock) -> Rows:
    """List the slowest kernels of a step, with some of the layers at the smaller size."""
    size = _sizes(machine)[0]
    bench = _bench(size, _config(machine, size))
    with torch.inference_mode():
        transformer, _ = bench_transformer(bench, machine.device, machine.dtype)
        step = prepared_step(transformer, draw_inputs(bench, machine.device, machine.dtype), bench)
        step()
        kernels = longest_kernels(step, machine.device)
    for kernel in kernels:
        yield {"name": kernel.name[:90], "ms": kernel.seconds * 1e3, "calls": kernel.calls, "share": kernel.share}


def variants(machine: Machine, clock: Clock) -> Rows:
    """Time the options at both sizes with some of the layers; `ratio` compares with the default of that size.

    `relative_error` is the difference of the noise prediction to that of the default. Offload must make none. The
    options that compile come last, each at the smaller size first: they need a minute or more.
    """
    eager: dict[tuple[int, int, int], float] = {}
    exact: dict[tuple[int, int, int], Tensor] = {}
    latest = {False: 0.0, True: _COMPILE_SECONDS}  # seconds of variants that do not compile, and of those that do
    for name, size in _in_order(machine):
        compiled = _VARIANTS[name].get("compiled", False)
        if clock.left_seconds < max(_VARIANT_SECONDS, latest[compiled]) and not machine.tiny:
            yield {"name": f"{_named(size)} {name}", "left_out": True}
            continue
        row = tried(partial(_variant, machine, size, name, exact))
        latest[compiled] = row.get("with_setup_seconds", latest[compiled])
        if name == _DEFAULT and "seconds" in row:
            eager[size] = row["seconds"]
        if size in eager and "seconds" in row:
            row["ratio"] = eager[size] / row["seconds"]
        yield {"name": f"{_named(size)} {name}"} | row
        if name == _ONE_BRANCH and "ratio" in row:
            preview = _FULL_CLIP_STEPS / _PREVIEW_STEPS * row["ratio"]
            yield {"name": f"{_named(size)} solver steps of a preview", "ratio": preview}


def _in_order(machine: Machine) -> list[tuple[str, tuple[int, int, int]]]:
    """Return the variants and sizes to measure, without the attention kernel that the default uses."""
    default = kernel_name("auto", machine.device)
    names = [name for name, fields in _VARIANTS.items() if fields.get("attention") != default]
    compiled = [name for name in names if _VARIANTS[name].get("compiled")]
    sizes = _sizes(machine)
    return [*product([name for name in names if name not in compiled], sizes)] + [
        (name, size) for size in sizes for name in compiled
    ]


def _variant(
    machine: Machine, size: tuple[int, int, int], name: str, exact: dict[tuple[int, int, int], Tensor]
) -> dict[str, Any]:
    started = time.perf_counter()
    config = _config(machine, size)
    if name == _CACHE:
        row = _cache(machine, size, config)
    else:
        row = _step(machine, size, config, exact if name != _ONE_BRANCH else None, **_VARIANTS[name])
    if name == _OFFLOAD and "relative_error" in row:
        row["ok"] = row["relative_error"] == 0
    return row | {"with_setup_seconds": time.perf_counter() - started}


def _cache(machine: Machine, size: tuple[int, int, int], config: S2VConfig) -> dict[str, Any]:
    """Return the gain of the first-block cache over the same steps without it."""
    machine.release()
    full, cached = bench_cache(_bench(size, config), _CACHE_STEPS, [_CACHE_THRESHOLD], machine.device)
    return {
        "ratio": full.seconds / cached.seconds,
        "left_out_forwards": cached.skipped_share,
        "relative_error": cached.relative_error,
    }


def _step(
    machine: Machine,
    size: tuple[int, int, int],
    config: S2VConfig,
    exact: dict[tuple[int, int, int], Tensor] | None = None,
    **fields: Any,
) -> dict[str, Any]:
    """Return the measurements of a step.

    `exact`: the noise prediction of the default for each size. A default step adds its own, another one gets its error.
    """
    machine.release()
    if machine.tiny:
        fields.pop("compiled", None)  # the compiler takes minutes on a CPU
    report = bench_step(replace(_bench(size, config), **fields), Worker(0, 1, machine.device))
    seconds = report.rows[0].seconds_per_step
    flops, tokens = step_flops(config, size, branches=2 if fields.get("guided", True) else 1)
    row: dict[str, Any] = {
        "seconds": seconds,
        "layers": config.num_layers,
        "tokens": tokens,
        "kernel": report.attention,
    }
    peak_flops = machine.peak_flops()
    if peak_flops is not None:
        row["mfu"] = flops / seconds / peak_flops
    if report.peak_memory_bytes is not None:
        row["peak_gib"] = report.peak_memory_bytes / 2**30
    if exact is not None:
        # The default is measured first. If it failed, other variants have nothing to be compared with.
        expected = exact.setdefault(size, report.velocity) if not fields else exact.get(size)
        if expected is not None:
            row["relative_error"] = ((report.velocity - expected).norm() / expected.norm()).item()
    return row


def _bench(size: tuple[int, int, int], config: S2VConfig) -> StepBench:
    width, height, num_frames = size
    return StepBench(config, (num_frames // 4, height // 8, width // 8), repeats=1, with_reference=False)


def _config(machine: Machine, size: tuple[int, int, int] | None) -> S2VConfig:
    """Return the dimensions of the 14B model with the layers of a variant at `size`; None: with all layers."""
    if machine.tiny:
        return _TINY_CONFIG
    if size is None:
        return S2VConfig()
    layers = _VARIANT_LAYERS[SIZES.index(size)]
    return S2VConfig(
        num_layers=layers, audio_inject_layers=tuple(n for n in S2VConfig.audio_inject_layers if n < layers)
    )


def _sizes(machine: Machine) -> tuple[tuple[int, int, int], ...]:
    return _TINY_SIZES if machine.tiny else SIZES


def _named(size: tuple[int, int, int]) -> str:
    return "x".join(map(str, size))
