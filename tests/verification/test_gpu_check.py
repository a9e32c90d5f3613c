"""Check the GPU check at toy size on a CPU: every section runs, and a failure gives an exit code."""

import json
from pathlib import Path
from typing import Any

import pytest

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
