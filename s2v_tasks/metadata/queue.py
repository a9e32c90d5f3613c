"""The queue: jobs of drops and batches that have no DAG run yet."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from s2v_tasks.errors import PermanentError
from s2v_tasks.metadata.ingestion_tables import Drop
from s2v_tasks.metadata.session import transaction
from s2v_tasks.metadata.sql import Repository, queued_run_id, request_columns, storable
from s2v_tasks.metadata.tables import Event, Job
from s2v_tasks.schemas.events import JobEvent
from s2v_tasks.schemas.job import ENDED_STATUSES, PRIORITIES, QUEUED_SOURCES, JobStatus, RestartableStatus, Source


@dataclass(frozen=True)
class NewJob:
    """A job to be queued. Its age in the queue starts at `submitted_at`, if known."""

    job_id: str
    request: dict[str, Any]
    submitted_at: datetime | None = None


@dataclass(frozen=True)
class ReadyJob:
    """A job that may start now as the DAG run `run_id`: the job id, with a number after a retry."""

    job_id: str
    run_id: str
    request: dict[str, Any]


class JobQueue(Repository):
    """The queue. Concurrent callers are safe: a run id is derived from the job id, so Airflow accepts it only once."""

    def next(self, max_running: int) -> list[ReadyJob]:
        """Return the jobs that may start now so that at most `max_running` run: by priority, then by age.

        A job without a DAG run (started on the command line) does not count as running, because its end may not be
        recorded.
        """
        active = sa.select(sa.func.count()).where(Job.status.not_in(ENDED_STATUSES), Job.dag_run_id.is_not(None))
        rank = sa.case({name: index for index, name in enumerate(PRIORITIES)}, value=Job.priority)
        waiting = (
            sa.select(Job.job_id, queued_run_id(), Job.request).where(*_waiting()).order_by(rank.desc(), Job.created_at)
        )
        with transaction(self._engine) as connection:
            free = max_running - connection.execute(active).scalar_one()
            rows = connection.execute(waiting.limit(max(free, 0))).all()
        return [ReadyJob(*row) for row in rows]

    def num_waiting(self) -> int:
        """Return the number of queued jobs without a DAG run."""
        return int(self._execute(sa.select(sa.func.count()).select_from(Job).where(*_waiting())).scalar_one())

    def run_of(self, job_id: str) -> str | None:
        """Return the DAG run of a job; of a job without a run, the one for which it waits; None without a job."""
        statement = sa.select(sa.func.coalesce(Job.dag_run_id, queued_run_id())).where(Job.job_id == job_id)
        return self._execute(statement).scalar_one_or_none()

    def mark_started(self, job_ids: Sequence[str]) -> int:
        """Record that these jobs have the DAG run of their `ReadyJob`, unless they were cancelled in the meantime.

        Return the number of changed jobs. PermanentError, and no change, if a job does not exist.
        """
        with transaction(self._engine) as connection:
            known = connection.execute(sa.select(Job.job_id).where(Job.job_id.in_(job_ids))).scalars()
            if unknown := sorted(set(job_ids) - set(known)):
                raise PermanentError(f"{', '.join(unknown)}: expected jobs that exist; `s2v jobs` lists all jobs.")
            return connection.execute(
                sa
                .update(Job)
                .where(Job.job_id.in_(job_ids), Job.dag_run_id.is_(None), Job.status.not_in(ENDED_STATUSES))
                .values(dag_run_id=queued_run_id())
            ).rowcount


def enqueue(connection: sa.Connection, jobs: Sequence[NewJob], source: Source) -> int:
    """Insert the jobs that do not exist yet; return their number."""
    now = datetime.now(UTC)
    rows = [
        {"job_id": job.job_id, "status": JobStatus.QUEUED, "source": source, "request": storable(job.request)}
        | {"created_at": job.submitted_at or now}
        | request_columns(job.request)
        for job in jobs
    ]
    statement = insert(Job).on_conflict_do_nothing().returning(Job.job_id)
    added = connection.execute(statement, rows).scalars().all()
    if added:
        detail = {"source": source}
        events = [{"job_id": job_id, "event": JobEvent.JOB_QUEUED, "detail": detail} for job_id in added]
        connection.execute(insert(Event), events)
    return len(added)


def retry(connection: sa.Connection, job_ids: Sequence[str]) -> int:
    """Queue those of these jobs again that failed or were cancelled; return their number.

    A job that was submitted in another way becomes a job of the batch, because only those wait in the queue.
    """
    again = {
        "status": JobStatus.QUEUED,
        "reason": None,
        "dag_run_id": None,
        "finished_at": None,
        "cancel_requested_at": None,
    }
    statement = (
        sa
        .update(Job)
        .where(Job.job_id.in_(job_ids), Job.status.in_(list(RestartableStatus)))
        .values(**again, source=sa.case((Job.source.in_(QUEUED_SOURCES), Job.source), else_=Source.BATCH))
        .returning(Job.job_id)
    )
    retried = connection.execute(statement).scalars().all()
    if retried:
        connection.execute(
            insert(Event), [{"job_id": job_id, "event": JobEvent.JOB_RETRIED, "detail": {}} for job_id in retried]
        )
    return len(retried)


def _waiting() -> list[sa.ColumnElement[bool]]:
    """Return the conditions of a waiting job: not started, not cancelled, and the files of its drop were moved."""
    is_moving = sa.exists().where(Drop.job_id == Job.job_id, Drop.status == "claimed")
    return [
        Job.source.in_(QUEUED_SOURCES),
        *(Job.status == JobStatus.QUEUED, Job.dag_run_id.is_(None), Job.cancel_requested_at.is_(None)),
        ~is_moving,
    ]
