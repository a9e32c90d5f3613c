"""Events of jobs, and the outbox with the webhook messages for some of them.

A message is stored in the transaction of its event and sent later, in order for each job.
"""

from collections.abc import Collection
from datetime import timedelta
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import aliased

from s2v_tasks.metadata.session import transaction
from s2v_tasks.metadata.sql import NOW, Repository, storable
from s2v_tasks.metadata.tables import Event, Job, Notification
from s2v_tasks.schemas.events import NOTIFIED_EVENTS, JobEvent, WebhookMessage

# The lease of a claim: if a sender dies during an attempt, another sender may claim the message after this time.
_LEASE = timedelta(minutes=1)
_FIRST_DELAY_SECONDS, _LONGEST_DELAY_SECONDS = 15, 3600
_HOST = "^[^:]*://([^/?#]*)"  # the host of a URL, with its port
GIVE_UP_AFTER = timedelta(days=1)


class EventRepository(Repository):
    """Events of jobs. `webhook_url` receives the messages of jobs whose request names no webhook."""

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
        """Record an event of a job."""
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
        values = storable(values)
        at = connection.execute(insert(Event).values(values).returning(Event.at)).scalar_one()
        if notify and event in NOTIFIED_EVENTS:
            self._add_notification(connection, values | {"at": at.isoformat()})

    def _add_notification(self, connection: sa.Connection, event: dict[str, Any]) -> None:
        """Add a message to the webhook of the request or to the configured one; nothing without either."""
        columns = [
            column for column in Job.__table__.columns if column.name in {"request", *WebhookMessage.model_fields}
        ]
        job = connection.execute(sa.select(*columns).where(Job.job_id == event["job_id"])).mappings().one()
        url = (job["request"] or {}).get("webhook_url") or self._webhook_url
        if not url:
            return
        message = WebhookMessage.model_validate({**job, **event})
        row = {name: event[name] for name in ("job_id", "clip_index", "event")}
        connection.execute(
            insert(Notification).values(**row, url=storable(str(url)), payload=message.model_dump(mode="json"))
        )


class NotificationRepository(Repository):
    """The outbox."""

    def claim(
        self, *, job_id: str | None = None, skip_urls: Collection[str] = (), skip_hosts: Collection[str] = ()
    ) -> Notification | None:
        """Return the next message that is due, of one job or of any, and lease it to this process for a minute.

        skip_hosts: hosts as they are written in URLs, with the port if there is one.
        Messages of a job go out in order: while one waits for its next attempt, the later ones wait too.
        """
        earlier = aliased(Notification)
        is_first = ~sa.exists().where(
            earlier.job_id == Notification.job_id, earlier.status == "pending", earlier.id < Notification.id
        )
        conditions = [Notification.status == "pending", Notification.next_attempt_at <= NOW, is_first]
        if job_id is not None:
            conditions.append(Notification.job_id == job_id)
        if skip_urls:
            conditions.append(Notification.url.not_in(skip_urls))
        if skip_hosts:
            conditions.append(sa.func.coalesce(sa.func.substring(Notification.url, _HOST), "").not_in(skip_hosts))
        due = sa.select(Notification.id).where(*conditions).order_by(Notification.next_attempt_at, Notification.id)
        due = due.limit(1).with_for_update(skip_locked=True)
        claim = (
            sa
            .update(Notification)
            .where(Notification.id == due.scalar_subquery())
            .values(attempts=Notification.attempts + 1, next_attempt_at=NOW + _LEASE)
            .returning(Notification.__table__)
        )
        row = self._execute(claim).mappings().one_or_none()
        return None if row is None else Notification(**row)

    def mark_delivered(self, notification_id: int) -> None:
        """Record that the receiver accepted the message."""
        self._settle(notification_id, {"status": "delivered", "delivered_at": NOW, "last_error": None})

    def give_up(self, notification_id: int, status: Literal["failed", "refused"], error: str) -> None:
        """Record that the message will not be sent again: the receiver rejects it, or its URL is not allowed."""
        self._settle(notification_id, {"status": status, "last_error": storable(error)})

    def postpone(self, notification_id: int, error: str) -> None:
        """Send the message again later, with exponential backoff; it fails one day after the event."""
        too_old = Notification.created_at < NOW - GIVE_UP_AFTER
        delay = sa.func.least(
            _FIRST_DELAY_SECONDS * sa.func.power(2, sa.func.least(Notification.attempts, 20) - 1),
            _LONGEST_DELAY_SECONDS,
        )
        self._settle(
            notification_id,
            {
                "last_error": storable(error),
                "status": sa.case((too_old, "failed"), else_="pending"),
                "next_attempt_at": sa.case((too_old, None), else_=NOW + sa.func.make_interval(0, 0, 0, 0, 0, 0, delay)),
            },
        )

    def _settle(self, notification_id: int, values: dict[str, Any]) -> None:
        """Record the outcome of an attempt, unless another sender settled the message after the end of the lease."""
        values = {"next_attempt_at": None} | values
        pending = (Notification.id == notification_id, Notification.status == "pending")
        self._execute(sa.update(Notification).where(*pending).values(**values))
