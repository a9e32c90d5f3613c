"""Check that `close_job` gives a status and a reason to jobs that end without success."""

import importlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from s2v_tasks.errors import PermanentError, TransientError
from s2v_tasks.metadata.ingestion import NewRow
from s2v_tasks.metadata.queue import NewJob
from s2v_tasks.metadata.store import MetadataStore
from s2v_tasks.metadata.tables import Job
from s2v_tasks.runtime.context import run_step
from s2v_tasks.schemas.events import JobEvent
from s2v_tasks.schemas.steps import CLOSE_JOB

JOB = "step-by-step"
Run = Callable[..., dict[str, Any]]
Found = Callable[[], Job]


def test_passing_faults_leave_the_job_running_until_it_is_closed(run: Run, found: Found) -> None:
    """A transient error does not fail the job; closing the job makes the last error its reason."""
    run("stage_inputs")
    with pytest.raises(TransientError):
        run("encode_conditions")
    assert found().status == "running"
    assert run("close_job")["status"] == "failed"
    assert "encode_conditions: jobs/step-by-step/plan.json is missing" in (found().reason or "")
    run("plan_clips")
    assert (found().status, found().reason) == ("running", None)


def test_a_job_without_a_reported_reason_gets_one(run: Run, found: Found) -> None:
    """A killed step reported no reason; a failure that a later attempt repaired is not the reason."""
    with pytest.raises(PermanentError):
        run("stage_inputs", preset="unheard-of")
    run("stage_inputs")
    run("close_job")
    assert "was killed before it could report a reason" in (found().reason or "")


def test_an_end_that_is_tried_again_has_the_reason_of_the_work(run: Run, metadata: MetadataStore, found: Found) -> None:
    """If `close_job` was killed, its next try reports the step that failed before, and its exit code."""
    run("stage_inputs")
    for step, error, code in (("render_clip", "The GPU is away.", 75), ("close_job", "It was killed by SIGTERM.", 1)):
        detail = {"error": error, "exit_code": code}
        metadata.events.record(JOB, step=step, event=JobEvent.STEP_FAILED, detail=detail)
    assert run("close_job") == {"status": "failed", "reason": "render_clip: The GPU is away."}
    assert found().exit_code == 75


def test_an_adapter_that_is_not_configured_is_refused_before_the_files_are_read(run: Run, found: Found) -> None:
    """The first step refuses an unknown adapter with the remedy, as it refuses an unknown preset."""
    with pytest.raises(PermanentError, match=r"'cinema' is not an entry of adapters\.yaml: it has no entries; add one"):
        run("stage_inputs", adapters=[{"name": "cinema"}])
    assert (found().status, found().started_at) == ("failed", None)


def test_a_job_whose_first_step_never_ran_has_nothing_to_close(run: Run, metadata: MetadataStore) -> None:
    """The status is `unknown`, and no job is stored."""
    closed = run("close_job")
    assert (closed["status"], "its first step never ran" in closed["reason"]) == ("unknown", True)
    assert metadata.jobs.get(JOB) is None


def test_an_old_outcome_is_not_that_of_new_work(run: Run, found: Found) -> None:
    """A run that ended before its first step does not get the status of an earlier run."""
    with pytest.raises(PermanentError):
        run("stage_inputs", preset="unheard-of")
    now = datetime.now(UTC)
    assert close_since(now - timedelta(hours=1))["status"] == "failed"
    assert close_since(now + timedelta(seconds=1))["status"] == "not run"
    finished_at = found().finished_at
    assert finished_at is not None
    assert close_since(finished_at)["status"] == "failed"
    assert found().status == "failed"


@pytest.mark.parametrize(("is_published", "status"), [(False, "cancelled"), (True, "succeeded")])
def test_a_cancel_ends_a_job_unless_its_video_was_published_before(
    metadata: MetadataStore, found: Found, is_published: bool, status: str
) -> None:
    """A cancel that comes while the last step publishes the video leaves the job succeeded."""
    began = datetime.now(UTC)
    metadata.jobs.enqueue(JOB, {"prompt": "A person speaks."})
    metadata.jobs.start(JOB)
    metadata.jobs.request_cancel(JOB)
    if is_published:
        metadata.jobs.succeed(JOB, "s3://out/x.mp4", "ab" * 32)
    assert close_since(began)["status"] == status
    assert found().status == status


def test_an_earlier_run_does_not_close_a_job_that_was_started_again(metadata: MetadataStore, found: Found) -> None:
    """The last task of a cancelled run leaves the job to the run that has started it again."""
    began = datetime.now(UTC)
    for run_id in ("run-1", "run-2"):
        metadata.jobs.enqueue(JOB, {"prompt": "A person speaks."}, dag_run_id=run_id)
        metadata.jobs.start(JOB)
        if run_id == "run-1":
            metadata.jobs.cancel(JOB)
    before = found()
    closed = close_since(began, "run-1")
    assert (closed["status"], "It belongs to run 'run-2'" in closed["reason"]) == ("not run", True)
    assert (found().status, found().updated_at) == ("running", before.updated_at)
    metadata.jobs.succeed(JOB, "s3://out/x.mp4", "ab" * 32)
    assert close_since(began, "run-1")["status"] == "succeeded"


def test_an_earlier_run_does_not_close_a_job_that_waits_for_its_next_run(metadata: MetadataStore, found: Found) -> None:
    """A job that a batch has queued again belongs to its next run, which has not begun."""
    began = datetime.now(UTC)
    metadata.batches.register("batch", "s3://b/m.jsonl", "etag", [NewRow(1, None, NewJob(JOB, {}))])
    metadata.jobs.enqueue(JOB, {}, dag_run_id=JOB)
    metadata.jobs.fail(JOB, "No GPU.")
    assert metadata.batches.retry("batch") == 1
    assert close_since(began, JOB)["status"] == "not run"
    assert found().status == "queued"
    assert close_since(began, f"{JOB}--2")["status"] == "failed"  # its first step was killed


def close_since(since: datetime, run_id: str | None = None) -> dict[str, Any]:
    body = importlib.import_module("s2v_tasks.steps.close_job").run
    return run_step(body, step=CLOSE_JOB, job_id=JOB, since=since, run_id=run_id)
