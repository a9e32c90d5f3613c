"""Check the error file in which a step leaves its reason."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from s2v_tasks.errors import leave_error


def test_the_first_of_several_ranks_writes_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first rank writes the file, also if it exists and is empty, as in a container."""
    path = tmp_path / "termination-log"
    path.touch()
    monkeypatch.setenv("STEP_ERROR_FILE", str(path))
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, message in (("1", "bad size"), ("0", "lost another rank")):
        monkeypatch.setenv("RANK", rank)
        leave_error(65, message)
    assert json.loads(path.read_text()) == {"exit_code": 65, "message": "rank 1: bad size"}


def test_a_long_message_fits_into_a_termination_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file has at most 4096 bytes, where Kubernetes would cut the JSON."""
    path = tmp_path / "termination-log"
    monkeypatch.setenv("STEP_ERROR_FILE", str(path))
    leave_error(1, "\U0001f3ac" * 5000)
    assert len(path.read_bytes()) <= 4096
    assert json.loads(path.read_text())["message"].startswith("\U0001f3ac")


def test_a_step_with_a_wrong_setting_asks_its_parent_to_store_the_reason(tmp_path: Path) -> None:
    """It knows no metadata store: Airflow must record the reason, which would otherwise only be in the log."""
    path = tmp_path / "error.json"
    done = subprocess.run(
        [sys.executable, "-m", "s2v_tasks.cli", "stitch", "--job-id", "my-job"],
        env=os.environ | {"STEP_ERROR_FILE": str(path), "S2V_NO_SUCH_SETTING": "1"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 78
    report = json.loads(path.read_text())
    assert "S2V_NO_SUCH_SETTING" in report["message"]
    assert report["is_recorded"] is False
