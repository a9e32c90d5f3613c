"""Folders that were dropped: who has claimed them, and where they are on their way."""

from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, fields
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from s2v_tasks.metadata.queue import WaitingJob, enqueue
from s2v_tasks.metadata.session import sole_holder, transaction
from s2v_tasks.metadata.statements import NOW, storable
from s2v_tasks.metadata.tables import Drop, Job
from s2v_tasks.schemas.job import Source

_SWEEP_LOCK = 7236002  # key of the advisory lock: any number that nothing else in this database uses


@dataclass(frozen=True)
class DropRecord:
    """One claimed folder; see the table for its columns."""

    drop_id: str
    folder_uri: str
    target_uri: str
    etag: str
    files: dict[str, Any]
    status: str
    job_id: str | None = None
    error: dict[str, Any] | None = None


class _CollisionError(Exception):
    """Takes back a claim that is half another's."""


class DropLedger:
    """The claims; each call is one transaction."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def sole_sweeper(self) -> AbstractContextManager[None]:
        """Hold the lock of the sweep; TransientError when another sweep has it."""
        return sole_holder(self._engine, _SWEEP_LOCK, "Another sweep of the drop folder runs: nothing to do now.")

    def unfinished(self) -> list[DropRecord]:
        """Claims whose files may still be on their way, oldest first."""
        columns = [getattr(Drop, field.name) for field in fields(DropRecord)]
        statement = sa.select(*columns).where(Drop.status.in_(["claimed", "refused"])).order_by(Drop.created_at)
        with transaction(self._engine) as connection:
            return [DropRecord(**row) for row in connection.execute(statement).mappings()]

    def earlier(self, folder_uri: str, etag: str) -> tuple[int, str | None]:
        """How often exactly these files were dropped in this folder before, and the job that they made."""
        statement = sa.select(sa.func.count(), sa.func.max(Drop.job_id))
        with transaction(self._engine) as connection:
            count, job_id = connection.execute(
                statement.where(Drop.folder_uri == storable(folder_uri), Drop.etag == etag)
            ).one()
        return count, job_id

    def is_target(self, uri: str) -> bool:
        """Whether a folder went there before."""
        return self._is_there(Drop.target_uri == uri)

    def job_exists(self, job_id: str) -> bool:
        """Whether there is a job of this name, however it came."""
        return self._is_there(Job.job_id == job_id)

    def claim(self, drop: DropRecord, job: WaitingJob | None = None) -> bool:
        """Make a drop ours, and with it its job; False, and nothing changes, when one of them is another's."""
        # Not by `rowcount`: of an INSERT it may be unknown.
        statement = insert(Drop).values(**storable(asdict(drop))).on_conflict_do_nothing().returning(Drop.drop_id)
        try:
            with transaction(self._engine) as connection:
                if connection.execute(statement).first() is None:
                    raise _CollisionError
                if job is not None and not enqueue(connection, [job], Source.DROP):
                    raise _CollisionError
        except _CollisionError:
            return False
        return True

    def arrived(self, drop_id: str) -> None:
        """All files of a claimed drop are at their target; its job may start."""
        self._advance(drop_id, "claimed", "accepted")

    def rejected(self, drop_id: str) -> None:
        """All files of a refused drop are at their target."""
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
