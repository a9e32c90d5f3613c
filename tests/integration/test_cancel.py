"""Check the cancel of a job whose second clip renders in processes of its own."""

import json
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from s2v_tasks.cli.job_control import cancel
from s2v_tasks.embedded.process import free_ports
from s2v_tasks.errors import JobCancelledError, PermanentError, TransientError
from s2v_tasks.metadata.store import MetadataStore
from s2v_tasks.orchestration.step_commands import StepFailedError, StepProcess
from s2v_tasks.runtime.context import run_step
from s2v_tasks.schemas.steps import Step
from s2v_tasks.settings import load_settings
from s2v_tasks.steps import close_job, encode_conditions, plan_clips, render_clip, stage_inputs
from s2v_tasks.storage.s3 import ObjectStore
from tests.engine.render_site import HELD_CLI

JOB = "to-be-cancelled"
STEPS = {
    "stage_inputs": stage_inputs,
    "plan_clips": plan_clips,
    "encode_conditions": encode_conditions,
    "render_clip": render_clip,
    "close_job": close_job,
}
REQUEST = {"prompt": "A portrait speaks.", "num_clip": 2, "infer_frames": 16, "sample_steps": 40, "size": "128*128"}


def run(step: str, clip_index: int | None = None, **arguments: Any) -> dict[str, Any]:
    return run_step(STEPS[step].run, step=Step(step), job_id=JOB, clip_index=clip_index, **arguments)


@pytest.mark.usefixtures("settings")
def test_a_cancelled_job_leaves_no_process_and_keeps_its_clips(
    store: ObjectStore, metadata: MetadataStore, processes_of: Callable[[str], list[str]], tmp_path: Path
) -> None:
    """Both ranks of clip 1 end by themselves; clip 0 stays and is reused by the next start."""
    uris = {"image_uri": store.uri("portrait.jpg"), "audio_uri": store.uri("speech.mp3")}
    request_json = json.dumps(uris | REQUEST)
    run("stage_inputs", request_json=request_json)
    run("plan_clips")
    run("encode_conditions")
    run("render_clip", 0)

    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--shutdown-timeout", "80"]
    (tmp_path / "held.py").write_text(HELD_CLI)
    command = [
        sys.executable,
        *torchrun,
        str(tmp_path / "held.py"),
        "render-clip",
        "--job-id",
        JOB,
        "--clip-index",
        "1",
    ]
    failures: list[StepFailedError] = []

    def work() -> None:
        try:
            StepProcess(command, lambda _line: None).run()
        except StepFailedError as failure:
            failures.append(failure)

    worker = threading.Thread(target=work)
    worker.start()
    while not all((tmp_path / f"held-{rank}").exists() for rank in range(2)):
        assert worker.is_alive(), failures
        threading.Event().wait(0.1)
    metadata.jobs.request_cancel(JOB)
    worker.join(300)
    assert not worker.is_alive()
    assert processes_of(JOB) == []
    assert [failure.fault for failure in failures] == ["permanent"]

    assert run("close_job")["status"] == "cancelled"
    job = metadata.jobs.get(JOB)
    assert job is not None
    assert (job.status, job.exit_code) == ("cancelled", 130)
    assert "1 of 2 clips are finished" in (job.reason or "")
    assert [clip.status for clip in job.clips] == ["succeeded", "pending"]
    assert [(attempt.clip_index, attempt.outcome, attempt.world_size) for attempt in job.attempts] == [
        (None, "succeeded", 1),
        (0, "succeeded", 1),
        (1, "failed", 2),
    ]
    with pytest.raises(JobCancelledError, match="submit it again"):
        run("render_clip", 1)
    run("stage_inputs", request_json=request_json)
    assert run("render_clip", 0)["reused"]


@pytest.mark.usefixtures("settings")
def test_the_reason_of_a_cancelled_job_is_shown_as_text(
    metadata: MetadataStore, capsys: pytest.CaptureFixture[str]
) -> None:
    """The reason may quote the note of a rejection, which may look like the markup of the console."""
    metadata.jobs.enqueue("rejected", {})
    metadata.jobs.cancel("rejected", "Clip 1 was rejected by edith: [/red] lips [bold]late.")
    cancel("rejected")
    assert "edith: [/red] lips [bold]late." in capsys.readouterr().out


@pytest.mark.usefixtures("settings")
def test_a_job_that_waits_is_cancelled_at_once(
    metadata: MetadataStore, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command cancels a waiting job itself, also without an answer of Airflow.

    It cannot say without Airflow that there is nothing to cancel: a start of the job may wait there.
    """
    monkeypatch.setenv("S2V_AIRFLOW_URL", f"http://127.0.0.1:{free_ports(1)[0]}")
    load_settings.cache_clear()
    metadata.jobs.enqueue("waiting", {})
    for _ in range(2):
        cancel("waiting", as_json=True)
        shown = capsys.readouterr()
        assert json.loads(shown.out)["status"] == "cancelled"
        assert "does not answer" in shown.err
    metadata.jobs.enqueue("over", {})
    metadata.jobs.fail("over", "why")
    for job_id in ("over", "never-submitted"):
        with pytest.raises(TransientError, match="does not answer"):
            cancel(job_id)
    monkeypatch.delenv("S2V_AIRFLOW_URL")
    load_settings.cache_clear()
    for job_id, words in (("over", "has failed"), ("never-submitted", "does not exist")):
        with pytest.raises(PermanentError, match=words):
            cancel(job_id)


@pytest.mark.usefixtures("settings")
def test_a_failed_job_whose_run_goes_on_is_cancelled(
    metadata: MetadataStore, capsys: pytest.CaptureFixture[str]
) -> None:
    """One clip has failed the job; the command stops the clips of its other chains."""
    metadata.jobs.enqueue("talk", {}, dag_run_id="talk")
    metadata.jobs.fail("talk", "Clip 0 is black.")
    cancel("talk")
    assert "It had failed: Clip 0 is black." in " ".join(capsys.readouterr().out.split())
    assert metadata.jobs.is_cancel_requested("talk")
