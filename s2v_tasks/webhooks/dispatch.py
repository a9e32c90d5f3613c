"""Sends what waits in the metadata store's outbox to the webhooks. Takes bounded time and never fails a job."""

import time
from collections import Counter
from typing import Any, Literal

from s2v_tasks import log
from s2v_tasks.errors import PermanentError, TransientError
from s2v_tasks.metadata.store import MetadataStore
from s2v_tasks.metadata.tables import Notification
from s2v_tasks.settings import Settings
from s2v_tasks.webhooks.delivery import Message, deliver
from s2v_tasks.webhooks.target import RefusedTargetError, TargetPolicy

MESSAGE_SECONDS = 5.0  # the longest that a receiver may take for one message
STEP_SECONDS = 3.0  # the longest that a step stays for the messages of its job
SWEEP_SECONDS = 50.0


def deliver_due(
    metadata: MetadataStore, settings: Settings, *, seconds: float = SWEEP_SECONDS, job_id: str | None = None
) -> dict[str, Any]:
    """Send the messages that are due, of one job or of all, until none is left or `seconds` have passed.

    A receiver that does not answer is not asked again in the same round, so that others do not wait for it.
    """
    deadline = time.monotonic() + seconds
    policy = TargetPolicy.from_settings(settings)
    outcomes: Counter[str] = Counter(delivered=0, failed=0, pending=0, refused=0)
    silent: set[str] = set()
    while (left := deadline - time.monotonic()) > 0:
        message = metadata.notifications.claim(job_id=job_id, skip_urls=silent)
        if message is None:
            break
        outcome = _send(metadata, message, settings, policy, min(left, MESSAGE_SECONDS))
        outcomes[outcome] += 1
        if outcome == "pending":
            silent.add(message.url)
    return dict(outcomes)


def _send(
    metadata: MetadataStore,
    notification: Notification,
    settings: Settings,
    policy: TargetPolicy,
    seconds: float,
) -> str:
    """Try one message and write down what became of it: the status that it has now."""
    logger = log.get_logger().bind(notification_id=notification.id, event_name=notification.event)
    try:
        if not settings.webhook_secret:
            raise RefusedTargetError(
                "S2V_WEBHOOK_SECRET is not set: expected the secret that messages are signed with."
            )
        message = Message(notification.id, notification.event, notification.payload)
        secret = settings.webhook_secret.get_secret_value()
        deliver(notification.url, message, secret=secret, policy=policy, seconds=seconds)
    except TransientError as error:
        logger.warning("notification_put_off", error=str(error))
        metadata.notifications.postpone(notification.id, str(error))
        return "pending"
    except PermanentError as error:
        status: Literal["refused", "failed"] = "refused" if isinstance(error, RefusedTargetError) else "failed"
        logger.warning(f"notification_{status}", error=str(error))
        metadata.notifications.give_up(notification.id, status, str(error))
        return status
    metadata.notifications.mark_delivered(notification.id)
    logger.info("notification_delivered")
    return "delivered"
