"""Sections that measure the networks around the transformer: the VAE, and the loading of weights."""

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from typing import Any

import torch
from torch import Tensor

from s2v_tasks.engine.encoders.vae import Vae
from s2v_tasks.engine.models.layers import MOTION_LATENTS
from s2v_tasks.engine.models.transformer import MOTION_FRAMES
from s2v_tasks.planning.estimate import vae_decode_flops, vae_encode_flops
from s2v_tasks.verification.bench.decode import random_vae
from s2v_tasks.verification.bench.load import bench_load
from tests.gpu.machine import Clock, Machine, Row, Rows, model_card, tried

_SIZES, _NUM_FRAMES = ((832, 448), (1024, 704)), 80
_TINY_SIZES, _TINY_NUM_FRAMES, _TINY_MOTION_FRAMES = ((64, 64),), 8, 5
_CHECKPOINT_BYTES = 16e9
# The least seconds for one more variant of the VAE at the true size, and for one more process that loads weights.
_VARIANT_SECONDS, _LOADING_SECONDS = 15.0, 20.0
# The most for a process that loads weights: on a GPU, and on a CPU that other tests share.
_PROCESS_SECONDS, _TINY_PROCESS_SECONDS = 90.0, 1200.0
# Those that a render uses come first; the others are measured at the smaller size only.
_FORMATS: dict[str, dict[str, Any]] = {
    "as rendered": {},
    "bfloat16, channels_last_3d": {"dtype": torch.bfloat16, "channels_last": True},
    "bfloat16": {"dtype": torch.bfloat16},
    "channels_last_3d": {"channels_last": True},
}
_NUM_RENDERED = 2


def vae(machine: Machine, clock: Clock) -> Rows:
    """Time what a later clip needs: its frames decoded, and its motion state encoded.

    As rendered (also with S2V_VAE_PRECISION=bfloat16), and in other formats; errors are to the first. The utilisation
    is that of the plan (`vae_utilization`): counted operations over the time and the peak in TF32.
    """
    sizes = _TINY_SIZES if machine.tiny else _SIZES
    exact: dict[str, Tensor] = {}
    needed = _VARIANT_SECONDS
    for number, (name, changes) in enumerate(_FORMATS.items()):
        codec = random_vae(8 if machine.tiny else 96, machine.device, **changes)
        for width, height in sizes if number < _NUM_RENDERED else sizes[:1]:
            if clock.left_seconds < needed and not machine.tiny:
                yield {"name": f"{width}x{height} {name}", "left_out": True}
                continue
            started = time.monotonic()
            for what, measure in (("decode", _decoded), ("encode", _encoded)):
                row = tried(partial(measure, machine, codec, width, height, exact))
                failure = {"ok": False} if "not_here" in row else {}
                yield {"name": f"{what} {width}x{height}", "how": name} | failure | row
            needed = max(needed, time.monotonic() - started)
        del codec
        machine.release()


def _decoded(machine: Machine, codec: Vae, width: int, height: int, exact: dict[str, Tensor]) -> Row:
    num_frames = _TINY_NUM_FRAMES if machine.tiny else _NUM_FRAMES
    num_latents = MOTION_LATENTS + num_frames // 4
    shape, device = (1, 16, num_latents, height // 8, width // 8), machine.device
    latents = torch.randn(shape, generator=_seeded(device), device=device)
    flops = vae_decode_flops(width, height, num_latents, num_frames, model_card())
    return _measured(machine, f"decode {width}", lambda: codec.decode_pieces(latents, num_frames), flops, exact)


def _encoded(machine: Machine, codec: Vae, width: int, height: int, exact: dict[str, Tensor]) -> Row:
    num_frames = _TINY_MOTION_FRAMES if machine.tiny else MOTION_FRAMES
    shape, device = (1, 3, num_frames, height, width), machine.device
    frames = torch.rand(shape, generator=_seeded(device), device=device) * 2 - 1
    flops = vae_encode_flops(width, height, MOTION_LATENTS, model_card())
    return _measured(machine, f"encode {width}", lambda: iter([codec.encode(frames)]), flops, exact)


def _measured(
    machine: Machine, what: str, pieces: Callable[[], Iterator[Tensor]], flops: float, exact: dict[str, Tensor]
) -> Row:
    """Measure `pieces`, whose results are dropped one by one: a render keeps no more on the GPU."""
    result = torch.cat([piece.cpu() for piece in pieces()], dim=2)  # also warms up
    expected = exact.setdefault(what, result)
    error = ((result - expected).norm() / expected.norm()).item()

    def compute() -> None:
        for _ in pieces():
            pass

    seconds, peak = machine.timed(compute)
    row: Row = {"seconds": seconds, "relative_error": error}
    peak_flops = machine.peak_flops("tf32")
    if peak_flops is not None:
        row["utilization"] = flops / seconds / peak_flops
    return row | ({"peak_gib": peak} if peak else {})


def _seeded(device: torch.device) -> torch.Generator:
    return torch.Generator(device).manual_seed(1)


def loading(machine: Machine, clock: Clock) -> Rows:
    """Load a checkpoint of random weights from the page cache."""
    size_bytes = 16e6 if machine.tiny else min(_CHECKPOINT_BYTES, shutil.disk_usage(tempfile.gettempdir()).free * 0.6)
    most_seconds = _TINY_PROCESS_SECONDS if machine.tiny else _PROCESS_SECONDS
    with closing(
        bench_load(size_bytes, 1, machine.device.type, with_naive=False, most_seconds=most_seconds)
    ) as results:
        for result in results:
            yield {
                "name": f"{size_bytes / 1e9:.3g} GB {result.name}",
                "seconds": result.seconds,
                "gb_per_second": result.bytes_per_second / 1e9,
                "host_memory_ratio": result.host_memory_ratio,
            }
            if result.name == "one thread" and clock.left_seconds < _LOADING_SECONDS and not machine.tiny:
                yield {"name": "threads", "left_out": True}
                return
