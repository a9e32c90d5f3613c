"""Events of jobs, and the webhook messages that some of them cause."""

from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from s2v_tasks.metadata.session import transaction
from s2v_tasks.metadata.sql import Repository, storable
from s2v_tasks.metadata.tables import Event, Job, Notification
from s2v_tasks.schemas.events import NOTIFIED_EVENTS, JobEvent


class EventRepository(Repository):
    """Events of jobs. `webhook_url` receives the messages of jobs whose request names no webhook of its own."""

    def __init__(self, engine: sa.Engine, webhook_url: str | None = None) -> None:
        super().__init__(engine)
        self._webhook_url = webhook_url

    def record(
        self,
        job_id: str,
        event: JobEvent,
        *,
        step: str | None = None,
        clip_index: int | None = None,
        detail: dict[str, Any] | None = None,
    ) -> None:
        """Record that something happened."""
        with transaction(self._engine) as connection:
            self.add(connection, job_id, event, step=step, clip_index=clip_index, detail=detail)

    def add(
        self,
        connection: sa.Connection,
        job_id: str,
        event: JobEvent,
        *,
        step: str | None = None,
        clip_index: int | None = None,
        detail: dict[str, Any] | None = None,
        notify: bool = True,
    ) -> None:
        """Add an event to a transaction and, for NOTIFIED_EVENTS unless `notify` is false, the webhook message."""
        values = {"job_id": job_id, "event": event, "step": step, "clip_index": clip_index, "detail": detail or {}}
        at = connection.execute(insert(Event).values(storable(values)).returning(Event.at)).scalar_one()
        if notify and event in NOTIFIED_EVENTS:
            self._add_notification(connection, values, at)

    def _add_notification(self, connection: sa.Connection, event: dict[str, Any], at: datetime) -> None:
        """Add a message to the webhook of the request or to the configured one; nothing without either."""
        columns = (Job.request, Job.labels, Job.num_clip, Job.num_frames)
        job = connection.execute(sa.select(*columns).where(Job.job_id == event["job_id"])).one()
        url = (job.request or {}).get("webhook_url") or self._webhook_url
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
