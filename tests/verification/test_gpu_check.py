"""Check the GPU check at toy size on a CPU: every section runs, and a failure gives an exit code."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.gpu import check
from tests.gpu.check import SECTIONS, Section, failures, main
from tests.gpu.machine import Clock, Machine, Rows

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


def sections(*names_and_rows: tuple[str, float, Rows | Exception]) -> tuple[Section, ...]:
    """Return sections that give these rows, or raise."""

    def run_of(result: Rows | Exception) -> Any:
        def run(_machine: Machine, _clock: Clock) -> Rows:
            if isinstance(result, Exception):
                raise result
            return result

        return run

    return tuple(Section(name, least, run_of(result)) for name, least, result in names_and_rows)


def test_a_wrong_result_and_an_error_fail_the_check_and_cost_no_other_section(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The exit code is 1, the other sections run, and the last line names the failed checks."""
    monkeypatch.setattr(
        check,
        "SECTIONS",
        sections(
            ("goldens", 0, [{"name": "float32", "ok": False}, {"name": "bfloat16", "ok": True}]),
            ("attention", 0, RuntimeError("no memory")),
            ("step", 0, [{"name": "832", "seconds": 1.5}]),
            ("vae", 1000, [{"name": "decode"}]),
        ),
    )
    report_path = tmp_path / "report.json"
    code = main(["--tiny", "--budget", "440", "--work-dir", str(tmp_path / "work"), "--report", str(report_path)])
    assert code == 1
    found = json.loads(report_path.read_text())["sections"]
    assert found["step"]["rows"] == [{"name": "832", "seconds": 1.5}]
    assert found["vae"] == {"rows": [], "left_out": True}
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert last == "2 checks FAILED: goldens: float32; attention: RuntimeError: no memory"


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
