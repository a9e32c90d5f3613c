"""The outbox of the webhooks: what happened is written down with it, and sent afterwards, in order for each job."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.orm import aliased

from s2v_tasks.metadata.session import transaction
from s2v_tasks.metadata.statements import NOW, storable
from s2v_tasks.metadata.tables import Notification

# A sender that dies in the middle of an attempt leaves the message to the next one after this time.
_LEASE = timedelta(minutes=1)
_FIRST_DELAY_SECONDS, _LONGEST_DELAY_SECONDS = 15, 3600
GIVE_UP_AFTER = timedelta(days=1)


@dataclass(frozen=True)
class ClaimedNotification:
    """One message that is this process's to send."""

    id: int
    job_id: str
    event: str
    url: str
    payload: dict[str, Any]


class NotificationLedger:
    """Takes messages out of the outbox and notes what became of them; each call is one transaction."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def claim_notification(
        self, *, job_id: str | None = None, but_not_to: Collection[str] = ()
    ) -> ClaimedNotification | None:
        """The next message that is due, of one job or of any, and not to these URLs; nobody else gets it meanwhile.

        Messages of a job go out in order: while one waits for its next attempt, those after it wait with it.
        """
        earlier = aliased(Notification)
        is_first = ~sa.exists().where(
            earlier.job_id == Notification.job_id, earlier.status == "pending", earlier.id < Notification.id
        )
        conditions = [Notification.status == "pending", Notification.next_attempt_at <= NOW, is_first]
        if job_id is not None:
            conditions.append(Notification.job_id == job_id)
        if but_not_to:
            conditions.append(Notification.url.not_in(but_not_to))
        due = sa.select(Notification.id).where(*conditions).order_by(Notification.next_attempt_at, Notification.id)
        due = due.limit(1).with_for_update(skip_locked=True)
        claim = (
            sa
            .update(Notification)
            .where(Notification.id == due.scalar_subquery())
            .values(attempts=Notification.attempts + 1, next_attempt_at=NOW + _LEASE)
            .returning(Notification.id, Notification.job_id, Notification.event, Notification.url, Notification.payload)
        )
        with transaction(self._engine) as connection:
            row = connection.execute(claim).mappings().one_or_none()
        return None if row is None else ClaimedNotification(**row)

    def notification_delivered(self, notification_id: int) -> None:
        """The receiver has it."""
        self._settle(notification_id, {"status": "delivered", "delivered_at": NOW, "last_error": None})

    def notification_ended(self, notification_id: int, status: Literal["failed", "refused"], error: str) -> None:
        """It will not be sent again: the receiver does not take it, or it must not be called."""
        self._settle(notification_id, {"status": status, "last_error": storable(error)})

    def notification_put_off(self, notification_id: int, error: str) -> None:
        """It is sent again later, after twice the time each time; a day after the event it has failed."""
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
