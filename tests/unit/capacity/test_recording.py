"""Check the records of a process of a benchmark; other processes record nothing."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from s2v_tasks.capacity.recording import CLIP_SECONDS, FOLDER, SITE, StepRecorder, created_at


def run_python(folder: Path, code: list[str], **variables: str) -> None:
    """Run a Python process as the benchmark starts it."""
    (folder / "sitecustomize.py").write_text(SITE)
    given = {"PYTHONPATH": os.pathsep.join([str(folder), str(Path(__file__).parents[3])]), **variables}
    subprocess.run([sys.executable, *code], env=os.environ | given, check=True, capture_output=True)


@pytest.mark.parametrize("recorded", [True, False])
def test_a_command_leaves_a_record_only_in_a_benchmark(tmp_path: Path, recorded: bool) -> None:
    """A command writes a record only if the folder of the benchmark is in its environment."""
    run_python(tmp_path, ["-m", "s2v_tasks.cli", "--version"], **({FOLDER: str(tmp_path)} if recorded else {}))
    path = tmp_path / "steps.jsonl"
    assert path.exists() is recorded
    if recorded:
        record = json.loads(path.read_text())
        assert (record["command"], record["statements"], record["requests"]) == (["--version"], {}, {})
        assert record["moments"]["created"] <= record["moments"]["python"] <= record["moments"]["ended"]


@pytest.mark.parametrize(
    ("variables", "stands_in"), [({CLIP_SECONDS: "0.5"}, True), ({}, False)], ids=["time", "networks"]
)
def test_only_the_time_of_a_clip_replaces_the_networks(
    tmp_path: Path, variables: dict[str, str], stands_in: bool
) -> None:
    """Without a configured time of a clip, a benchmark renders with the real renderer."""
    code = (
        "import sys; sys.orig_argv = ['python', '-m', 's2v_tasks.cli', 'render-clip']\n"
        "from s2v_tasks.capacity import recording; recording.install()\n"
        "from s2v_tasks.rendering.leader import Renderer\n"
        f"assert hasattr(Renderer, 'clip_seconds') is {stands_in}"
    )
    run_python(tmp_path, ["-c", code], **{FOLDER: str(tmp_path)}, **variables)


def test_statements_of_threads_that_repeat_themselves_are_polls(tmp_path: Path) -> None:
    """Statements of heartbeats are counted apart from those of the step, because they depend on time."""
    recorder = StepRecorder(tmp_path / "steps.jsonl", ["stitch"])
    recorder.count_statement("SELECT 1")
    recorder.count_statement("\n  update jobs set reason = null")
    beat = threading.Thread(target=recorder.count_statement, args=("UPDATE attempts",), name="heartbeats")
    beat.start()
    beat.join()
    assert (recorder.statements, recorder.polls) == ({"select": 1, "update": 1}, 1)


def test_the_start_of_a_process_is_before_its_own_clock() -> None:
    """The start of the process comes from /proc and is before this test, by less than an hour."""
    import time

    assert time.time() - 3600 < created_at() < time.time()
