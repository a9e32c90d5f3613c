"""Starts of a job: which request may start it, which processes belong to it, whether it is over or may be cancelled."""

from collections.abc import Collection
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from s2v_tasks.errors import TransientError
from s2v_tasks.metadata.sql import queued_run_id, update_job
from s2v_tasks.metadata.tables import Event, Job
from s2v_tasks.schemas.events import JobEvent
from s2v_tasks.schemas.job import ENDED_STATUSES, JobStatus, RestartableStatus
from s2v_tasks.schemas.starts import refuse_other_request
from s2v_tasks.schemas.steps import CLOSE_JOB


def check_owner(
    connection: sa.Connection,
    job_id: str,
    request: dict[str, Any],
    *,
    run_id: str | None,
    given_only: bool = False,
) -> None:
    """Raise JobTakenError if the existing job has another request; its row stays locked for this transaction.

    `run_id`: the DAG run that brings the request. The current run of the job may bring any request, because the
    defaults of the form may have changed. The run for which the job waits may do so too, because the form fills in
    omitted fields.
    """
    columns = sa.select(Job.status, Job.request, Job.dag_run_id, queued_run_id().label("awaited_run_id"))
    job = connection.execute(columns.where(Job.job_id == job_id).with_for_update()).one_or_none()
    if (
        job is None
        or job.status in list(RestartableStatus)
        or job.request is None
        or (run_id and run_id == job.dag_run_id)
    ):
        return
    if job.dag_run_id is None and run_id == job.awaited_run_id:
        refuse_other_request(job_id, job.request, request, given_only=True)
    else:
        refuse_other_request(job_id, request, job.request, given_only=given_only)


def refuse_late(
    connection: sa.Connection,
    job_id: str,
    began_at: datetime | None,
    ended_as: Collection[JobStatus] = ENDED_STATUSES,
    *,
    by_clip: bool = False,
) -> None:
    """Raise TransientError for a step that began at `began_at` if the job has ended or was started again since.

    The clock is that of the database. `ended_as`: the statuses that count as ended. A step that starts the job sets
    `started_at` to its own beginning, and is therefore not late. `by_clip`: clips are rendered at the same time, and
    each of them may have started the job.
    """
    if began_at is None:
        return
    is_retry = (Event.job_id == job_id, Event.event == JobEvent.JOB_RETRIED, Event.at > began_at)
    is_started = sa.false() if by_clip else Job.started_at > began_at
    what_happened = sa.case(
        (sa.or_(is_started, sa.exists().where(*is_retry)), "was started again"),
        (sa.and_(Job.status.in_(list(ended_as)), Job.finished_at >= began_at), "has ended"),
    )
    found = connection.execute(sa.select(what_happened, Job.status).where(Job.job_id == job_id)).one_or_none()
    if found is not None and found[0] is not None:
        raise TransientError(
            f"Job {job_id} {found[0]} since this process began (it is {found[1]}): expected it to run on. Another "
            "process may have taken the place of this one. Nothing is changed; run the step again if the job needs it."
        )


def is_settled(connection: sa.Connection, job_id: str) -> bool:
    """Return True if the last failure or cancel of the job was followed by `close_job` or by the loss of its run."""
    is_end = Event.event.in_((JobEvent.JOB_FAILED, JobEvent.JOB_CANCELLED))
    is_close = sa.or_(
        sa.and_(Event.step == CLOSE_JOB.name, Event.event == JobEvent.STEP_FINISHED), Event.event == JobEvent.RUN_LOST
    )
    statement = sa.select(is_end).where(Event.job_id == job_id, sa.or_(is_end, is_close))
    return not connection.execute(statement.order_by(Event.id.desc()).limit(1)).scalar()


def is_cancellable(connection: sa.Connection, job_id: str) -> bool:
    """Return True if the job has not ended, or has failed while its run may still render clips of other chains."""
    columns = sa.select(Job.status, Job.dag_run_id).where(Job.job_id == job_id)
    job = connection.execute(columns).one_or_none()
    if job is None or job.status not in ENDED_STATUSES:
        return job is not None
    return job.status == JobStatus.FAILED and job.dag_run_id is not None and not is_settled(connection, job_id)


def clear_cancel(connection: sa.Connection, job_id: str) -> None:
    """Clear the cancel request of a job that has ended and starts again."""
    update_job(connection, job_id, {"cancel_requested_at": None}, Job.status.in_(ENDED_STATUSES))
