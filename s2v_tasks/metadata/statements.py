"""The statements that several parts of the ledger share: upserts and updates of jobs and clips, events."""

import math
import re
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from s2v_tasks.errors import PermanentError
from s2v_tasks.metadata.tables import Clip, Event, Job

NOW = sa.func.now()
_NOT_STORABLE = re.compile(r"[\x00\ud800-\udfff]")


def lock_job(connection: sa.Connection, job_id: str) -> None:
    """Make the writers of one job take turns, so that none waits for another in a circle.

    PermanentError when the job was never queued.
    """
    found = connection.execute(sa.select(Job.job_id).where(Job.job_id == job_id).with_for_update()).first()
    if found is None:
        raise PermanentError(f"job {job_id!r} is not on record: run `s2v stage-inputs` for it first.")


def upsert_job(connection: sa.Connection, job_id: str, values: dict[str, Any], **kept: Any) -> None:
    """Insert a job or update it; a job that has a value in a column of `kept` keeps it."""
    values, kept = storable(values), storable(kept)
    statement = insert(Job).values(job_id=job_id, **values, **kept)
    unchanged = {name: sa.func.coalesce(getattr(Job, name), statement.excluded[name]) for name in kept}
    connection.execute(
        statement.on_conflict_do_update(index_elements=["job_id"], set_={**values, **unchanged, "updated_at": NOW})
    )


def update_job(
    connection: sa.Connection, job_id: str, values: dict[str, Any], *conditions: sa.ColumnElement[bool]
) -> bool:
    """Update a job that meets the conditions; whether there was one."""
    statement = sa.update(Job).where(Job.job_id == job_id, *conditions).values(**storable(values), updated_at=NOW)
    return connection.execute(statement).rowcount > 0


def update_clip(connection: sa.Connection, job_id: str, clip_index: int, values: dict[str, Any]) -> None:
    """Update a clip; PermanentError when the plan on record has none with this index."""
    statement = (
        sa.update(Clip).where(Clip.job_id == job_id, Clip.clip_index == clip_index).values(**values, updated_at=NOW)
    )
    if connection.execute(statement).rowcount == 0:
        raise PermanentError(
            f"clip {clip_index} of job {job_id!r} is not on record: run `s2v plan-clips` for the job first."
        )


def add_event(
    connection: sa.Connection,
    job_id: str,
    event: str,
    *,
    step: str | None = None,
    clip_index: int | None = None,
    detail: dict[str, Any] | None = None,
) -> None:
    """Note that something happened."""
    values = {"job_id": job_id, "event": event, "step": step, "clip_index": clip_index, "detail": detail or {}}
    connection.execute(insert(Event).values(storable(values)))


def storable(value: Any) -> Any:
    """A value without what PostgreSQL refuses: text has U+FFFD for NUL and lone surrogates, JSON the name of NaN.

    A column of numbers reads such a name as the number.
    """
    if isinstance(value, str):
        return _NOT_STORABLE.sub("\ufffd", value)
    if isinstance(value, dict):
        return {storable(key): storable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [storable(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value
