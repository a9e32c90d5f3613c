"""End a job as failed or cancelled, with its clips, attempts and approvals; all functions work in a transaction."""

from datetime import datetime

import sqlalchemy as sa

from s2v_tasks.metadata.approvals import withdraw_approvals
from s2v_tasks.metadata.attempts import end_attempts
from s2v_tasks.metadata.events import EventRepository
from s2v_tasks.metadata.sql import NOW, update_job, upsert_job
from s2v_tasks.metadata.starts import refuse_late
from s2v_tasks.metadata.tables import Clip, Job
from s2v_tasks.schemas.events import JobEvent
from s2v_tasks.schemas.job import AttemptOutcome, ClipStatus, JobStatus


def fail_job(
    connection: sa.Connection, events: EventRepository, job_id: str, reason: str, began_at: datetime | None = None
) -> None:
    """Fail the job and the clips that it renders. `began_at`: see `JobRepository.fail`."""
    before = connection.execute(sa.select(Job.status).where(Job.job_id == job_id).with_for_update()).scalar()
    refuse_late(connection, job_id, began_at, (JobStatus.SUCCEEDED, JobStatus.CANCELLED))
    upsert_job(connection, job_id, {"status": JobStatus.FAILED, "reason": reason, "finished_at": NOW})
    _end_work(connection, job_id, AttemptOutcome.LOST, reason, clips=ClipStatus.FAILED)
    is_new = before != JobStatus.FAILED
    events.add(connection, job_id, JobEvent.JOB_FAILED, detail={"reason": reason}, notify=is_new)


def cancel_job(
    connection: sa.Connection,
    events: EventRepository,
    job_id: str,
    reason: str | None = None,
    *,
    failure: str | None = None,
) -> None:
    """Cancel the job unless it has succeeded. `reason`: the default counts the clips; `failure`: why it had failed."""
    counts = sa.select(sa.func.count(), sa.func.count().filter(Clip.status == ClipStatus.SUCCEEDED))
    planned, done = connection.execute(counts.where(Clip.job_id == job_id)).one()
    reason = reason or f"Cancelled by a person; {done} of {planned} clips are finished and are reused."
    reason += f" It had failed: {failure}" if failure else ""
    values = {"status": JobStatus.CANCELLED, "reason": reason, "finished_at": NOW}
    if update_job(connection, job_id, values, Job.status.not_in((JobStatus.SUCCEEDED, JobStatus.CANCELLED))):
        _end_work(connection, job_id, AttemptOutcome.FAILED, "The job was cancelled.", clips=ClipStatus.PENDING)
        events.add(connection, job_id, JobEvent.JOB_CANCELLED, detail={"reason": reason})


def _end_work(
    connection: sa.Connection, job_id: str, outcome: AttemptOutcome, reason: str, *, clips: ClipStatus
) -> None:
    """End the open attempts, withdraw open approvals, and set the clips that are being rendered to status `clips`."""
    end_attempts(connection, job_id, outcome=outcome, reason=reason)
    interrupted = (Clip.job_id == job_id, Clip.status == ClipStatus.RENDERING)
    connection.execute(sa.update(Clip).where(*interrupted).values(status=clips))
    withdraw_approvals(connection, job_id)
