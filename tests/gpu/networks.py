"""Sections that measure the networks around the transformer: the VAE, and the loading of weights."""

import shutil
import tempfile
from functools import partial
from typing import Any

import torch

from s2v_tasks.verification.bench.decode import random_vae
from s2v_tasks.verification.bench.load import bench_load
from tests.gpu.machine import Clock, Machine, Rows

_SIZES = ((832, 448), (1024, 704))
_NUM_LATENTS = 20  # of a clip of 80 frames
_CHECKPOINT_BYTES = 16e9
# The least seconds for one more variant at the true size.
_VARIANT_SECONDS = 15.0


def vae(machine: Machine, clock: Clock) -> Rows:
    """Time decoding and encoding as rendered, in another memory format, and in bfloat16; errors are to the first."""
    formats: dict[str, dict[str, Any]] = {
        "as rendered": {},
        "channels_last_3d": {"channels_last": True},
        "bfloat16": {"dtype": torch.bfloat16},
        "bfloat16, channels_last_3d": {"dtype": torch.bfloat16, "channels_last": True},
    }
    for width, height in ((64, 64),) if machine.tiny else _SIZES:
        latents, frames = _inputs(machine, width, height)
        exact: dict[str, torch.Tensor] = {}
        for name, changes in formats.items():
            if clock.left_seconds < _VARIANT_SECONDS and not machine.tiny:
                yield {"name": f"{width}x{height} {name}", "left_out": True}
                return
            codec = random_vae(8 if machine.tiny else 96, machine.device, **changes)
            for what, compute in (
                ("decode", partial(codec.decode, latents)),
                ("encode", partial(codec.encode, frames)),
            ):
                result = compute()  # also warms up
                expected = exact.setdefault(what, result)
                seconds, peak = machine.timed(compute)
                error = ((result - expected).norm() / expected.norm()).item()
                row = {"name": f"{what} {width}x{height}", "how": name, "seconds": seconds, "relative_error": error}
                yield row | ({"peak_gib": peak} if peak else {})
            del codec, compute, result
            machine.release()


def _inputs(machine: Machine, width: int, height: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return latents of a clip and its frames, drawn from a seed."""
    generator = torch.Generator().manual_seed(1)
    count = 2 if machine.tiny else _NUM_LATENTS
    latents = torch.randn(1, 16, count, height // 8, width // 8, generator=generator)
    frames = torch.rand(1, 3, 4 * count - 3, height, width, generator=generator) * 2 - 1
    return latents.to(machine.device), frames.to(machine.device)


def loading(machine: Machine, _clock: Clock) -> Rows:
    """Load a checkpoint of random weights from the page cache."""
    size_bytes = 16e6 if machine.tiny else min(_CHECKPOINT_BYTES, shutil.disk_usage(tempfile.gettempdir()).free * 0.6)
    for result in bench_load(size_bytes, 1, machine.device.type, with_naive=False):
        yield {
            "name": f"{size_bytes / 1e9:.3g} GB {result.name}",
            "seconds": result.seconds,
            "gb_per_second": result.bytes_per_second / 1e9,
            "host_memory_ratio": result.host_memory_ratio,
        }
