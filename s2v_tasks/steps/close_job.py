"""close_job: record status and reason of a job that ended without reporting (killed, lost worker, cancelled)."""

from datetime import datetime
from typing import Any

from s2v_tasks.metadata.tables import Job
from s2v_tasks.runtime.context import StepContext
from s2v_tasks.schemas.events import JobEvent
from s2v_tasks.schemas.job import JobStatus


def run(
    ctx: StepContext, *, since: datetime | None = None, run_id: str | None = None, failed_task: str | None = None
) -> dict[str, Any]:
    """Close the job of a DAG run and return its status and reason.

    since: start of the run; an earlier end of the job is not the outcome of this run. run_id: the DAG run that ends; a
    job that refused the request of this run, or that belongs to another run, does not change. failed_task: the task
    that failed in Airflow, for the reason if no step reported one.
    """
    job = ctx.metadata.jobs.get(ctx.job_id)
    if job is None:
        return {"status": "unknown", "reason": "The metadata store has no such job: its first step never ran."}
    if since and job.finished_at and job.finished_at < since:
        return {"status": "not run", "reason": f"No step ran; the job is unchanged: {job.status}."}
    if run_id and (refusal := _refusal_of(job, run_id)):
        return {"status": "not run", "reason": refusal}
    if run_id and not job.has_ended and run_id != (own := ctx.metadata.queue.run_of(ctx.job_id)):
        return {"status": "not run", "reason": f"The job is unchanged: {job.status}. It belongs to run {own!r}."}
    if job.cancel_requested_at and job.status != JobStatus.SUCCEEDED:
        ctx.metadata.jobs.cancel(ctx.job_id, began_at=ctx.began_at)
        return {"status": JobStatus.CANCELLED, "reason": "It was cancelled; finished clips are kept and reused."}
    if job.has_ended:
        return {"status": job.status, "reason": job.reason}
    reason = _last_reason(job) or (
        f"Task {failed_task} failed and no step reported a reason: Airflow failed the task, or its process was "
        "killed. See the task's log in Airflow and the log of the scheduler, then start the job again; finished clips "
        "are reused."
        if failed_task
        else "A step was killed before it could report a reason: see the Airflow log of the failed task, then start "
        "the job again; finished clips are reused."
    )
    ctx.metadata.jobs.fail(ctx.job_id, reason, began_at=ctx.began_at)
    return {"status": JobStatus.FAILED, "reason": reason}


def _refusal_of(job: Job, run_id: str) -> str | None:
    """Return the reason why the request of this run was refused; None if it was accepted at any time."""
    if job.dag_run_id == run_id:
        return None
    refusals = [event.detail for event in job.events if event.event == JobEvent.REQUEST_REFUSED]
    return next((detail["error"] for detail in refusals if detail["dag_run_id"] == run_id), None)


def _last_reason(job: Job) -> str | None:
    """Return the reason of the last step of the work that failed since the job was queued and did not end later."""
    open_failures: dict[tuple[str | None, int | None], str] = {}
    for event in job.events:
        if event.event == JobEvent.JOB_QUEUED:
            open_failures.clear()
        elif event.is_failure_of_work:
            open_failures.pop((event.step, event.clip_index), None)  # the latest failure comes last
            open_failures[event.step, event.clip_index] = f"{event.step}: {event.detail['error']}"
        elif event.event == JobEvent.STEP_FINISHED:
            open_failures.pop((event.step, event.clip_index), None)
    return list(open_failures.values())[-1] if open_failures else None
