"""Claims to dropped folders, and the state of their move."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from s2v_tasks.metadata.queue import NewJob, enqueue
from s2v_tasks.metadata.session import sole_holder, transaction
from s2v_tasks.metadata.sql import NOW, Repository, load_rows, storable
from s2v_tasks.metadata.tables import Drop, Job
from s2v_tasks.schemas.job import Source

_SWEEP_LOCK = 7236002  # key of the advisory lock: any number that nothing else in this database uses


class _CollisionError(Exception):
    """Rolls back a claim whose folder or job id belongs to another claim."""


class DropRepository(Repository):
    """Claims to dropped folders."""

    def sweep_lock(self) -> AbstractContextManager[None]:
        """Hold the lock of the sweep; TransientError when another sweep holds it."""
        return sole_holder(self._engine, _SWEEP_LOCK, "Another sweep of the drop folder runs: nothing to do now.")

    def unfinished(self) -> Sequence[Drop]:
        """Return the claims whose files may still have to be moved, oldest first."""
        with transaction(self._engine) as connection:
            return load_rows(connection, Drop, Drop.status.in_(["claimed", "refused"]), order=Drop.created_at)

    def earlier(self, folder_uri: str, etag: str) -> tuple[int, str | None]:
        """Return how often exactly these files were dropped in this folder before, and the id of their job."""
        statement = sa.select(sa.func.count(), sa.func.max(Drop.job_id))
        with transaction(self._engine) as connection:
            count, job_id = connection.execute(
                statement.where(Drop.folder_uri == storable(folder_uri), Drop.etag == etag)
            ).one()
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
        with transaction(self._engine) as connection:
            found: bool = connection.execute(sa.select(sa.exists().where(condition))).scalar_one()
        return found

    def _advance(self, drop_id: str, old: str, new: str) -> None:
        with transaction(self._engine) as connection:
            connection.execute(
                sa
                .update(Drop)
                .where(Drop.drop_id == storable(drop_id), Drop.status == old)
                .values(status=new, updated_at=NOW)
            )
