"""The statements that several parts of the ledger share: upserts and updates of jobs and clips, events."""

import math
import re
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from s2v_tasks.errors import PermanentError
from s2v_tasks.metadata.tables import Clip, Event, Job, Notification
from s2v_tasks.schemas.events import NOTIFIED_EVENTS, JobEvent

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
    event: JobEvent,
    *,
    step: str | None = None,
    clip_index: int | None = None,
    detail: dict[str, Any] | None = None,
    is_news: bool = True,
) -> None:
    """Note that something happened, and in the same breath, if it is news, that the job's webhook is to be told."""
    values = {"job_id": job_id, "event": event, "step": step, "clip_index": clip_index, "detail": detail or {}}
    at = connection.execute(insert(Event).values(storable(values)).returning(Event.at)).scalar_one()
    if is_news and event in NOTIFIED_EVENTS:
        _add_notification(connection, values, at)


def _add_notification(connection: sa.Connection, event: dict[str, Any], at: datetime) -> None:
    """Put a message into the outbox, to the webhook of the request or the configured one; nothing without either."""
    columns = (Job.request, Job.labels, Job.num_clip, Job.num_frames)
    job = connection.execute(sa.select(*columns).where(Job.job_id == event["job_id"])).one()
    url = (job.request or {}).get("webhook_url") or connection.get_execution_options().get("webhook_url")
    if not url:
        return
    payload = {
        "schema_version": 1,
        "event": event["event"],
        "at": at.isoformat(),
        "job_id": event["job_id"],
        "clip_index": event["clip_index"],
        "num_clip": job.num_clip,
        "num_frames": job.num_frames,
        "labels": job.labels,
        "detail": event["detail"],
    }
    names = ("job_id", "clip_index", "event")
    row = {name: event[name] for name in names} | {"url": str(url), "payload": payload}
    connection.execute(insert(Notification).values(storable(row)))


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
