"""Queries of housekeeping: jobs that have ended, files that are in use, objects that must exist, silent runs."""

from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.orm import aliased

from s2v_tasks.metadata.sql import Repository
from s2v_tasks.metadata.tables import ArtifactRow, Clip, Job
from s2v_tasks.schemas.job import ENDED_STATUSES, RestartableStatus
from s2v_tasks.schemas.request_fields import URI_FIELDS

# Rendering updates its clip with each solver step. Airflow is asked about a silent run before its job is closed.
SILENT_BEFORE_LOST = timedelta(minutes=15)


class OpenRun(NamedTuple):
    """A job that has not ended, and its DAG run."""

    job_id: str
    dag_run_id: str


class StoredArtifact(NamedTuple):
    """Job and size of an artifact."""

    job_id: str
    size_bytes: int


class HousekeepingRepository(Repository):
    """Queries over all jobs."""

    def job_ids(self) -> set[str]:
        """Return the ids of all jobs."""
        return self._strings(sa.select(Job.job_id))

    def settled_jobs(self, before: datetime) -> set[str]:
        """Return the jobs that ended before this time and are not needed by an unfinished rerun."""
        child = aliased(Job)
        needed = sa.exists().where(child.parent_job_id == Job.job_id, child.status.not_in(ENDED_STATUSES))
        return self._strings(
            sa.select(Job.job_id).where(Job.status.in_(ENDED_STATUSES), Job.finished_at < before, ~needed)
        )

    def named_inputs(self) -> set[str]:
        """Return the input URIs of all jobs that have not ended or whose video is published."""
        kept = Job.status.not_in(list(RestartableStatus))
        return {
            uri
            for field in URI_FIELDS
            for uri in self._strings(sa.select(Job.request[field].astext).where(kept, Job.request.has_key(field)))
        }

    def artifacts(self) -> dict[str, StoredArtifact]:
        """Return all artifacts by key."""
        statement = sa.select(ArtifactRow.key, ArtifactRow.job_id, ArtifactRow.size_bytes)
        return {row.key: StoredArtifact(row.job_id, row.size_bytes) for row in self._execute(statement)}

    def silent_runs(self, at_most: int | None = None) -> list[OpenRun]:
        """Return unfinished jobs with a DAG run and without records for SILENT_BEFORE_LOST.

        Ask Airflow for the state of their runs. `at_most`: a random sample of this size, for frequent callers.
        """
        before = datetime.now(UTC) - SILENT_BEFORE_LOST
        alive = sa.exists().where(Clip.job_id == Job.job_id, Clip.updated_at >= before)
        statement = (
            sa
            .select(Job.job_id, Job.dag_run_id)
            .where(Job.status.not_in(ENDED_STATUSES), Job.dag_run_id.is_not(None), Job.updated_at < before, ~alive)
            .order_by(Job.created_at if at_most is None else sa.func.random())
            .limit(at_most)
        )
        return [OpenRun(row.job_id, row.dag_run_id) for row in self._execute(statement)]

    def _strings(self, statement: sa.Select[Any]) -> set[str]:
        return {str(value) for value in self._execute(statement).scalars() if value}
