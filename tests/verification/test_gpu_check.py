"""Check the GPU check at toy size on a CPU: every section runs, and a failure gives an exit code."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.gpu import check
from tests.gpu.check import SECTIONS, Section, failures, main
from tests.gpu.machine import Clock, Machine, Row, Rows

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
    offload = ("64x64x8 offload", "128x64x8 offload")
    assert checked == dict.fromkeys(
        ("float32", "bfloat16", "two processes", "stopped and continued", "compiled, two processes", *offload), True
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
