"""Check failures of the steps as commands."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from s2v_tasks.errors import PermanentError
from s2v_tasks.metadata.tables import Job

SAMPLES = Path(__file__).parents[1] / "samples"
JOB = "step-by-step"
Run = Callable[..., dict[str, Any]]
Found = Callable[[], Job]


@pytest.mark.parametrize(
    ("fields", "exit_code", "sentence"),
    [
        ({"size": "100*100"}, 65, "multiples of 32"),
        ({"image_uri": "s3://nowhere-at-all/picture.png"}, 65, "S2V_ALLOWED_INPUT_URIS"),
    ],
)
def test_a_refused_step_reports_one_sentence(
    tmp_path: Path,
    fields: dict[str, Any],
    exit_code: int,
    sentence: str,
    found: Found,
    request_json: Callable[..., str],
) -> None:
    """Exit code, stderr, the error file and the reason of the job agree."""
    error_file = tmp_path / "error.json"
    done = s2v("stage-inputs", "--job-id", JOB, "--request-json", request_json(**fields), error_file)
    assert done.returncode == exit_code
    left = json.loads(error_file.read_text())
    assert left["exit_code"] == exit_code
    assert sentence in left["message"]
    assert done.stderr.strip().splitlines()[-1] == f"PermanentError: {left['message']}"
    job = found()
    assert (job.status, job.reason) == ("failed", f"stage_inputs: {left['message']}")


def test_an_unknown_setting_is_a_configuration_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A misspelt variable ends every command with exit code 78 and the name of the variable."""
    monkeypatch.setenv("S2V_MAX_CLIP", "3")
    done = s2v("jobs", tmp_path / "error.json")
    assert done.returncode == 78
    assert "S2V_MAX_CLIP: not a setting" in done.stderr


def s2v(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    """Run the command line as Airflow does; the last argument is the error file."""
    import os

    *command, error_file = map(str, arguments)
    return subprocess.run(
        [sys.executable, "-m", "s2v_tasks.cli", *command],
        env=os.environ | {"STEP_ERROR_FILE": error_file},
        capture_output=True,
        text=True,
        check=False,
    )


def test_words_of_a_user_are_never_markup(run: Run, tmp_path: Path) -> None:
    """`s2v jobs` prints the brackets of a reason as they are."""
    with pytest.raises(PermanentError):
        run("stage_inputs", size="[/x]")
    for command in (("jobs",), ("job", JOB)):
        done = s2v(*command, tmp_path / "error.json")
        assert done.returncode == 0, done.stderr
        assert "[/x]" in done.stdout


def test_a_plan_for_a_missing_file_is_refused_in_one_sentence(tmp_path: Path) -> None:
    """`s2v plan` names the missing file."""
    done = s2v("plan", "--audio", tmp_path / "none.wav", "--image", SAMPLES / "portrait.jpg", tmp_path / "error.json")
    assert done.returncode == 65
    assert "none.wav' is not a file" in done.stderr
