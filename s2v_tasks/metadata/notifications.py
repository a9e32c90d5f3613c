"""The outbox of webhook messages: stored in the transaction of their event, sent later, in order for each job."""

from collections.abc import Collection
from datetime import timedelta
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.orm import aliased

from s2v_tasks.metadata.session import transaction
from s2v_tasks.metadata.sql import NOW, Repository, storable
from s2v_tasks.metadata.tables import Notification

# The lease of a claim: when a sender dies during an attempt, another one may claim the message after this time.
_LEASE = timedelta(minutes=1)
_FIRST_DELAY_SECONDS, _LONGEST_DELAY_SECONDS = 15, 3600
GIVE_UP_AFTER = timedelta(days=1)


class NotificationRepository(Repository):
    """The outbox."""

    def claim(self, *, job_id: str | None = None, skip_urls: Collection[str] = ()) -> Notification | None:
        """Return the next message that is due, of one job or of any, and lease it to this process for a minute.

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
        due = sa.select(Notification.id).where(*conditions).order_by(Notification.next_attempt_at, Notification.id)
        due = due.limit(1).with_for_update(skip_locked=True)
        claim = (
            sa
            .update(Notification)
            .where(Notification.id == due.scalar_subquery())
            .values(attempts=Notification.attempts + 1, next_attempt_at=NOW + _LEASE)
            .returning(Notification.__table__)
        )
        with transaction(self._engine) as connection:
            row = connection.execute(claim).mappings().one_or_none()
        return None if row is None else Notification(**row)

    def mark_delivered(self, notification_id: int) -> None:
        """Record that the receiver accepted the message."""
        self._settle(notification_id, {"status": "delivered", "delivered_at": NOW, "last_error": None})

    def give_up(self, notification_id: int, status: Literal["failed", "refused"], error: str) -> None:
        """Record that the message is not sent again: the receiver rejects it, or may not be called."""
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
        values = {"next_attempt_at": None} | values
        with transaction(self._engine) as connection:
            connection.execute(sa.update(Notification).where(Notification.id == notification_id).values(**values))
