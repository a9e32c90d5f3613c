"""Jobs that arrive as files: claims to dropped folders, and batches with the outcome of each row."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from s2v_tasks.metadata.ingestion_tables import Batch, BatchRow, Drop
from s2v_tasks.metadata.queue import NewJob, enqueue, retry
from s2v_tasks.metadata.session import sole_holder, transaction
from s2v_tasks.metadata.sql import NOW, Repository, load_rows, spent_gpu_seconds, storable
from s2v_tasks.metadata.tables import Job
from s2v_tasks.schemas.job import Source

_SWEEP_LOCK = 7236002  # key of the advisory lock: any number that nothing else in this database uses


class _CollisionError(Exception):
    """Rolls back a claim whose folder or job id belongs to another claim."""


class DropRepository(Repository):
    """Claims of dropped folders: each is claimed once, so that it starts at most one job."""

    def sweep_lock(self) -> AbstractContextManager[None]:
        """Hold the lock of the sweep; TransientError when another sweep holds it."""
        return sole_holder(self._engine, _SWEEP_LOCK, "Another sweep of the drop folder runs: nothing to do now.")

    def unfinished(self) -> Sequence[Drop]:
        """Return the claims whose files may still have to be moved, oldest first."""
        with transaction(self._engine) as connection:
            return load_rows(connection, Drop, Drop.status.in_(["claimed", "refused"]), order=Drop.created_at)

    def earlier(self, folder_uri: str, etag: str) -> tuple[int, str | None]:
        """Return the number of earlier drops with exactly these files in this folder, and the id of their job."""
        statement = sa.select(sa.func.count(), sa.func.max(Drop.job_id))
        same = (Drop.folder_uri == storable(folder_uri), Drop.etag == etag)
        count, job_id = self._execute(statement.where(*same)).one()
        return count, job_id

    def is_target(self, uri: str) -> bool:
        """Return True if an earlier folder was moved to this URI."""
        return self._is_there(Drop.target_uri == uri)

    def job_exists(self, job_id: str) -> bool:
        """Return True if a job of this id exists, from any source."""
        return self._is_there(Job.job_id == job_id)

    def claim(self, drop: Drop, job: NewJob | None = None) -> bool:
        """Claim a drop and queue its job; return False and change nothing if either exists already."""
        values = {name: value for name, value in asdict(drop).items() if value is not None}
        # `rowcount` of an INSERT may be unknown, therefore RETURNING.
        statement = insert(Drop).values(**storable(values)).on_conflict_do_nothing().returning(Drop.drop_id)
        try:
            with transaction(self._engine) as connection:
                if connection.execute(statement).first() is None:
                    raise _CollisionError
                if job is not None and not enqueue(connection, [job], Source.DROP):
                    raise _CollisionError
        except _CollisionError:
            return False
        return True

    def mark_accepted(self, drop_id: str) -> None:
        """Record that all files of a claimed drop are at their target; its job may start."""
        self._advance(drop_id, "claimed", "accepted")

    def mark_rejected(self, drop_id: str) -> None:
        """Record that all files of a refused drop are at their target."""
        self._advance(drop_id, "refused", "rejected")

    def _is_there(self, condition: sa.ColumnElement[bool]) -> bool:
        return bool(self._execute(sa.select(sa.exists().where(condition))).scalar_one())

    def _advance(self, drop_id: str, old: str, new: str) -> None:
        self._execute(sa.update(Drop).where(Drop.drop_id == storable(drop_id), Drop.status == old).values(status=new))


@dataclass(frozen=True)
class NewRow:
    """One row of a manifest: the line in which it begins, its id and its job."""

    line: int
    row_id: str | None
    job: NewJob


@dataclass(frozen=True)
class RowOutcome:
    """Outcome of the row that begins in a line. `gpu_seconds`: sum over all attempts."""

    line: int
    row_id: str | None
    job_id: str
    status: str
    reason: str | None
    video_uri: str | None
    num_frames: int | None
    gpu_seconds: float
    cost: float | None
    currency: str | None
    created_at: datetime
    finished_at: datetime | None


class BatchRepository(Repository):
    """Batches and their rows."""

    def register(self, batch_id: str, manifest_uri: str, etag: str, rows: Sequence[NewRow]) -> int:
        """Record a version of a manifest and queue its new jobs; return the number of new jobs."""
        values = {"manifest_uri": storable(manifest_uri), "etag": etag, "num_rows": len(rows)}
        again = {"status": "running", "finished_at": None, "updated_at": NOW}
        with transaction(self._engine) as connection:
            connection.execute(
                insert(Batch)
                .values(batch_id=batch_id, **values)
                .on_conflict_do_update(index_elements=["batch_id"], set_=again)
            )
            added = enqueue(connection, [row.job for row in rows], Source.BATCH)
            values_of_rows = [
                {"batch_id": batch_id, "row_number": row.line, "job_id": row.job.job_id}
                | {"row_id": storable(row.row_id)}
                for row in rows
            ]
            connection.execute(insert(BatchRow).on_conflict_do_nothing(), values_of_rows)
        return added

    def retry(self, batch_id: str) -> int:
        """Queue the failed and cancelled jobs of a batch again; return their number."""
        with transaction(self._engine) as connection:
            rows = connection.execute(sa.select(BatchRow.job_id).where(BatchRow.batch_id == batch_id))
            return retry(connection, rows.scalars().all())

    def counts(self, batch_id: str) -> dict[str, int]:
        """Return the number of rows by status of their job."""
        statement = (
            sa
            .select(Job.status, sa.func.count().label("num_jobs"))
            .join(BatchRow, BatchRow.job_id == Job.job_id)
            .where(BatchRow.batch_id == batch_id)
            .group_by(Job.status)
            .order_by(Job.status)
        )
        return {row.status: row.num_jobs for row in self._execute(statement)}

    def manifest_uri(self, batch_id: str) -> str | None:
        """Return the URI of the manifest of a batch; None if there is no such batch."""
        statement = sa.select(Batch.manifest_uri).where(Batch.batch_id == batch_id)
        return self._execute(statement).scalar_one_or_none()

    def outcomes(self, batch_id: str) -> list[RowOutcome]:
        """Return the outcome of each row, in the order of the manifest."""
        spent = spent_gpu_seconds()
        statement = (
            sa
            .select(
                *(BatchRow.row_number.label("line"), BatchRow.row_id, BatchRow.job_id),
                *(Job.status, Job.reason, Job.video_uri, Job.num_frames, spent.label("gpu_seconds")),
                (spent * Job.cost_per_gpu_hour / 3600).label("cost"),
                *(Job.currency, Job.created_at, Job.finished_at),
            )
            .join(Job, BatchRow.job_id == Job.job_id)
            .where(BatchRow.batch_id == batch_id)
            .order_by(BatchRow.row_number)
        )
        return [RowOutcome(**row) for row in self._execute(statement).mappings()]

    def finish(self, batch_id: str) -> None:
        """Record that all jobs of the batch have ended."""
        statement = sa.update(Batch).where(Batch.batch_id == batch_id, Batch.status == "running")
        self._execute(statement.values(status="finished", finished_at=NOW))
