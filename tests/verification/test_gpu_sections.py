"""Check what the sections of the GPU check measure, at toy size on a CPU."""

import gc
import subprocess
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from s2v_tasks.engine.acceleration.offload import BlockOffload
from s2v_tasks.engine.encoders.vae import Vae
from s2v_tasks.engine.models.layers import MOTION_LATENTS
from tests.gpu import correctness, networks, speed
from tests.gpu.machine import Clock, Machine, Row, step_flops
from tests.gpu.speed import _config, _sizes


@pytest.fixture
def toy(tmp_path: Path) -> Machine:
    return Machine(torch.device("cpu"), tiny=True, work_dir=tmp_path)


@pytest.mark.parametrize(
    ("name", "tflops"),
    [("NVIDIA H100 80GB HBM3", 989), ("NVIDIA H200", 989), ("NVIDIA GeForce RTX 4090", 165), ("NVIDIA H100 NVL", None),
     ("NVIDIA H100 PCIe", None), ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None), ("NVIDIA B300", None)],
)  # fmt: skip
def test_only_a_known_card_has_a_peak(name: str, tflops: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A card of another form, a part of a card, and an unknown card have no peak, and so no utilisation."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: name)
    peak = Machine(torch.device("cuda"), True, Path()).peak_flops()
    assert peak == (tflops * 1e12 if tflops else None)


def test_the_utilisation_counts_the_branches_that_are_computed(toy: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """MFU times seconds are the operations of one branch without guidance, and of two with it."""
    monkeypatch.setattr(Machine, "peak_flops", lambda _machine: 1.0)
    size = _sizes(toy)[0]
    config = _config(toy, size)
    for guided, branches in ((True, 2), (False, 1)):
        row = speed._step(toy, size, config, guided=guided)
        assert row["mfu"] * row["seconds"] == pytest.approx(step_flops(config, size, branches=branches)[0])
    assert step_flops(config, size, branches=2)[0] > 1.4 * step_flops(config, size, branches=1)[0]


def test_ratios_are_to_the_default_only(toy: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A variant that fails in any way is named, and the others are measured; without the default there is no ratio."""

    def step(_machine: Machine, _size: Any, _config: Any, _exact: Any, **fields: Any) -> Row:
        if not fields:
            raise RuntimeError("CUDA out of memory")
        if "weights_dtype" in fields:
            raise ImportError("torchao needs a newer torch")
        return {"seconds": 2.0}

    monkeypatch.setattr(speed, "_step", step)
    monkeypatch.setattr(speed, "_cache", lambda *_: {"ratio": 1.5})
    rows = {row["name"].removeprefix("64x64x8 "): row for row in speed.variants(toy, Clock(100))}
    assert rows["default"]["not_here"] == "RuntimeError: CUDA out of memory"
    assert rows["fp8"]["not_here"] == "ImportError: torchao needs a newer torch"
    assert rows["cudnn"]["seconds"] == rows["without guidance"]["seconds"] == 2.0
    assert [name for name, row in rows.items() if "ratio" in row and "128x64x8" not in name] == [
        f"first-block cache {speed._CACHE_THRESHOLD}"
    ]


def test_an_offload_that_computes_with_wrong_weights_fails_the_check(
    toy: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The noise prediction must be that of resident blocks; the error of another variant is only stated."""
    monkeypatch.setattr(speed, "_VARIANTS", {name: speed._VARIANTS[name] for name in ("default", "offload", "flash")})
    offloads = [row for row in speed.variants(toy, Clock(100)) if "offload" in row["name"]]
    assert [(row["ok"], row["relative_error"]) for row in offloads] == [(True, 0.0)] * 2
    monkeypatch.setattr(BlockOffload, "_to_device", lambda _offload, weight: torch.zeros_like(weight))
    rows = {row["name"].removeprefix("64x64x8 "): row for row in speed.variants(toy, Clock(100))}
    assert rows["default"]["relative_error"] == 0
    assert rows["offload"]["ok"] is False
    assert rows["offload"]["relative_error"] > 0
    assert rows["flash"]["relative_error"] < 1e-5
    assert "ok" not in rows["flash"]


def test_variants_that_compile_come_last_and_need_as_long_as_the_latest(monkeypatch: pytest.MonkeyPatch) -> None:
    """The smaller size comes first, the kernel of the default is not measured again, and what fits no more is named."""
    machine = Machine(torch.device("cuda"), tiny=False, work_dir=Path())
    monkeypatch.setattr(speed, "kernel_name", lambda _chosen, _device: "cudnn")
    now = [0.0]
    monkeypatch.setattr(Clock, "left_seconds", property(lambda _clock: 300 - now[0]))

    def variant(_machine: Machine, _size: Any, name: str, _exact: Any) -> Row:
        needed = 70.0 if "compile" in name else 5.0
        now[0] += needed
        return {"seconds": 1.0, "with_setup_seconds": needed}

    monkeypatch.setattr(speed, "_variant", variant)
    rows = [row for row in speed.variants(machine, Clock(300)) if "preview" not in row["name"]]
    assert not any("cudnn" in row["name"] for row in rows)
    assert [(row["name"], "left_out" in row) for row in rows[-4:]] == [
        ("832x448x80 compile", False),
        ("832x448x80 fp8-dynamic, compile", False),
        ("1024x704x80 compile", False),
        ("1024x704x80 fp8-dynamic, compile", True),  # 60 s would have been enough, had the others not needed 70
    ]
    assert [row["name"] for row in rows if "left_out" in row] == ["1024x704x80 fp8-dynamic, compile"]


def test_a_format_of_the_vae_that_fails_costs_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """The formats of a render are measured at both sizes before the others, and one that fails fails the check."""
    machine = Machine(torch.device("cpu"), tiny=False, work_dir=Path())
    monkeypatch.setattr(networks, "random_vae", lambda _base_dim, _device, **changes: changes)

    def decoded(_machine: Machine, changes: dict[str, Any], *_: object) -> Row:
        if "dtype" in changes:
            raise RuntimeError("cuDNN has no kernel")
        return {"seconds": 1.0}

    monkeypatch.setattr(networks, "_decoded", decoded)
    monkeypatch.setattr(networks, "_encoded", lambda *_: {"seconds": 2.0})
    rows = list(networks.vae(machine, Clock(1000)))
    measured = [(row["name"].split()[1], row["how"]) for row in rows if row["name"].startswith("encode")]
    sizes, rendered = ("832x448", "1024x704"), ("as rendered", "bfloat16, channels_last_3d")
    assert measured == [(size, how) for how in rendered for size in sizes] + [
        ("832x448", "bfloat16"),
        ("832x448", "channels_last_3d"),
    ]
    failed = [row for row in rows if "not_here" in row]
    assert {row["how"] for row in failed} == {"bfloat16", "bfloat16, channels_last_3d"}
    assert all(row["ok"] is False for row in failed)


def test_the_vae_is_measured_as_a_render_uses_it(toy: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A later clip is decoded, and while it is timed no more than two pieces of its frames are kept."""
    alive: list[int] = []
    asked: list[tuple[int, int]] = []

    def decode_pieces(_vae: Vae, latents: Tensor, num_frames: int) -> Iterator[Tensor]:
        asked.append((latents.shape[2], num_frames))
        pieces: list[weakref.ref[Tensor]] = []
        for _ in range(num_frames // 4):
            piece = torch.ones(1, 3, 4, 8, 8)
            pieces.append(weakref.ref(piece))
            yield piece
            del piece
            gc.collect()
            alive.append(sum(kept() is not None for kept in pieces))

    monkeypatch.setattr(Vae, "decode_pieces", decode_pieces)
    rows = [row for row in networks.vae(toy, Clock(100)) if row["name"].startswith("decode")]
    assert set(asked) == {(MOTION_LATENTS + 2, 8)}
    assert len(rows) == len(networks._FORMATS)
    assert max(alive) <= 2


def test_a_process_that_hangs_is_ended(toy: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A render that does not end within its time is an error of its section."""
    monkeypatch.setattr(correctness, "_TINY_PROCESS_SECONDS", 0.2)
    with pytest.raises(subprocess.TimeoutExpired):
        next(correctness.repeatable(toy, Clock(100)))
