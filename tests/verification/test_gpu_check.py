"""Check the GPU check at toy size on a CPU: every section runs, and a failure gives an exit code."""

import gc
import json
import subprocess
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from s2v_tasks.engine.encoders.vae import Vae
from s2v_tasks.engine.models.layers import MOTION_LATENTS
from tests.gpu import check, correctness, networks, speed
from tests.gpu.check import SECTIONS, Section, failures, main
from tests.gpu.machine import Clock, Machine, Row, Rows, step_flops
from tests.gpu.speed import _config, _sizes

ROOT = Path(__file__).parents[2]


def test_every_section_runs_at_toy_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each section gives rows, the report holds them, and all checks of correctness pass."""
    report_path = tmp_path / "report.json"
    code = main(["--tiny", "--work-dir", str(tmp_path / "work"), "--report", str(report_path)])
    report: dict[str, Any] = json.loads(report_path.read_text())
    assert failures(report) == []
    assert code == 0
    assert list(report["sections"]) == [section.name for section in SECTIONS]
    assert all(section["rows"] for section in report["sections"].values())
    checked = {row["name"]: row["ok"] for part in report["sections"].values() for row in part["rows"] if "ok" in row}
    variants = {row["name"]: row for row in report["sections"]["variants"]["rows"]}
    for size in ("64x64x8", "128x64x8"):
        one_branch, preview = variants[f"{size} without guidance"], variants[f"{size} solver steps of a preview"]
        assert preview["ratio"] == pytest.approx(10 * one_branch["ratio"])
    assert checked == dict.fromkeys(
        ("float32", "bfloat16", "two processes", "stopped and continued", "compiled, two processes"), True
    )
    assert "All checks passed." in capsys.readouterr().out


def sections(*names_and_rows: tuple[str, float, list[Row | Exception]]) -> tuple[Section, ...]:
    """Return sections that give these rows, and raise where an exception stands among them."""

    def run_of(results: list[Row | Exception]) -> Any:
        def run(_machine: Machine, _clock: Clock) -> Rows:
            for result in results:
                if isinstance(result, Exception):
                    raise result
                yield result

        return run

    return tuple(Section(name, least, run_of(result)) for name, least, result in names_and_rows)


def test_a_wrong_result_and_an_error_fail_the_check_and_cost_no_other_section(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The exit code is 1, the other sections run, and the last line names the failed checks.

    A section that ends with an error keeps its measurements.
    """
    monkeypatch.setattr(
        check,
        "SECTIONS",
        sections(
            ("goldens", 0, [{"name": "float32", "ok": False}, {"name": "bfloat16", "ok": True}]),
            ("attention", 0, [{"name": "flash", "ms": 2.5}, RuntimeError("no memory")]),
            ("step", 0, [{"name": "832", "seconds": 1.5}]),
            ("vae", 1000, [{"name": "decode"}]),
        ),
    )
    report_path = tmp_path / "report.json"
    code = main(["--tiny", "--budget", "440", "--work-dir", str(tmp_path / "work"), "--report", str(report_path)])
    assert code == 1
    found = json.loads(report_path.read_text())["sections"]
    assert found["attention"]["rows"] == [{"name": "flash", "ms": 2.5}]
    assert found["step"]["rows"] == [{"name": "832", "seconds": 1.5}]
    assert found["vae"] == {"rows": [], "left_out": True}
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert last == "2 checks FAILED: goldens: float32; attention: RuntimeError: no memory"


def test_what_did_not_fit_into_the_budget_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The last lines name sections that did not run or are incomplete, and claim only what ran."""
    rows: list[Row | Exception] = [{"name": "832x448 eager", "left_out": True}]
    monkeypatch.setattr(
        check,
        "SECTIONS",
        sections(("goldens", 0, [{"name": "a", "ok": True}]), ("variants", 0, rows), ("vae", 1000, [])),
    )
    report_path = tmp_path / "report.json"
    assert main(["--tiny", "--work-dir", str(tmp_path / "work"), "--report", str(report_path)]) == 0
    *_, named, _, last = capsys.readouterr().out.strip().splitlines()
    assert named == "Not measured, or in part, for lack of time: variants, vae."
    assert last == "The checks that ran passed."


def test_a_run_that_is_stopped_keeps_each_measurement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row is in the report before the next one is measured."""
    report_path = tmp_path / "report.json"
    kept: list[Any] = []

    def measure(_machine: Machine, _clock: Clock) -> Rows:
        yield {"name": "default", "seconds": 1.5}
        kept.append(json.loads(report_path.read_text())["sections"]["variants"]["rows"])
        yield {"name": "compile", "seconds": 1.25}

    monkeypatch.setattr(check, "SECTIONS", (Section("variants", 0, measure),))
    main(["--tiny", "--work-dir", str(tmp_path / "work"), "--report", str(report_path)])
    assert kept == [[{"name": "default", "seconds": 1.5}]]


def test_a_run_that_hangs_prints_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some seconds after the budget the stacks of all threads are printed, unless the run has ended before."""
    calls: list[Any] = []
    monkeypatch.setattr("faulthandler.dump_traceback_later", lambda seconds, file: calls.append(seconds))
    monkeypatch.setattr("faulthandler.cancel_dump_traceback_later", lambda: calls.append("cancelled"))
    monkeypatch.setattr(check, "SECTIONS", (Section("step", 0, lambda *_: iter([{"name": str(calls)}])),))
    report = str(tmp_path / "report.json")
    main(["--tiny", "--budget", "400", "--work-dir", str(tmp_path / "work"), "--report", report])
    assert calls == [400 + check._LATE_SECONDS, "cancelled"]
    assert json.loads(Path(report).read_text())["sections"]["step"]["rows"] == [{"name": f"[{calls[0]}]"}]


def test_a_section_leaves_the_least_seconds_of_the_later_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock of a section ends before the budget, by what the sections after it need."""
    left: list[float] = []

    def measure(_machine: Machine, clock: Clock) -> Rows:
        left.append(clock.left_seconds)
        yield {"name": "measured"}

    monkeypatch.setattr(
        check, "SECTIONS", (Section("step", 0, measure), Section("loading", 150, measure), Section("vae", 250, measure))
    )
    main([
        "--tiny",
        "--budget",
        "1000",
        "--work-dir",
        str(tmp_path / "work"),
        "--report",
        str(tmp_path / "report.json"),
    ])
    assert left == pytest.approx([600, 750, 1000], abs=60)


def test_an_error_that_the_gpu_keeps_costs_no_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If every call of the GPU fails from one section on, the report has the earlier sections and every error."""
    released: list[None] = []

    def release(_machine: Machine) -> None:
        released.append(None)
        if len(released) > 1:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(Machine, "release", release)
    failing = ("attention", 0.0, [RuntimeError("CUDA error")])
    monkeypatch.setattr(check, "SECTIONS", sections(("goldens", 0, [{"name": "float32"}]), failing, ("step", 0, [])))
    report_path = tmp_path / "report.json"
    assert main(["--tiny", "--work-dir", str(tmp_path / "work"), "--report", str(report_path)]) == 1
    found = json.loads(report_path.read_text())["sections"]
    assert found["goldens"]["rows"] == [{"name": "float32"}]
    assert all("CUDA error" in found[name]["error"] for name in ("attention", "step"))


def test_the_gpu_computes_as_in_a_render(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The device is chosen as a render chooses it, with its deterministic kernels."""
    chosen: list[str] = []
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(check, "choose_device", lambda name: chosen.append(name) or torch.device("cpu"))
    monkeypatch.setattr(check, "SECTIONS", ())
    main(["--work-dir", str(tmp_path / "work"), "--report", str(tmp_path / "report.json")])
    assert chosen == ["cuda"]


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

    def step(_machine: Machine, _size: Any, _config: Any, **fields: Any) -> Row:
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


def test_variants_that_compile_come_last_and_need_as_long_as_the_latest(monkeypatch: pytest.MonkeyPatch) -> None:
    """The smaller size comes first, the kernel of the default is not measured again, and what fits no more is named."""
    machine = Machine(torch.device("cuda"), tiny=False, work_dir=Path())
    monkeypatch.setattr(speed, "kernel_name", lambda _chosen, _device: "cudnn")
    now = [0.0]
    monkeypatch.setattr(Clock, "left_seconds", property(lambda _clock: 300 - now[0]))

    def variant(_machine: Machine, _size: Any, name: str) -> Row:
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


def test_the_manual_names_every_section() -> None:
    """tests/gpu/README.md has a row for each section."""
    manual = (ROOT / "tests" / "gpu" / "README.md").read_text(encoding="utf-8")
    assert all(f"| `{section.name}` |" in manual for section in SECTIONS)


def test_without_a_gpu_the_check_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU the check says so, and measures and writes nothing."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main([]) == 2
    assert list(tmp_path.iterdir()) == []
