"""Send the messages that are due: signed, with a time limit on the whole call, without following redirects.

The signature is that of Standard Webhooks (https://www.standardwebhooks.com): `webhook-signature` is `v1,` and the
base64 of HMAC-SHA256 over `<webhook-id>.<webhook-timestamp>.<body>`. `X-S2V-Signature` is sent, too, for receivers of
earlier versions. docs/how-to/webhooks.md describes the verification. `WebhookMessage` in
schemas/events.py has the fields of a message. Delivery takes bounded time and never fails a job.
"""

import base64
import binascii
import contextlib
import hashlib
import hmac
import http.client
import json
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

from s2v_tasks import __version__, log
from s2v_tasks.errors import PermanentError, TransientError
from s2v_tasks.metadata.store import MetadataStore
from s2v_tasks.metadata.tables import Notification
from s2v_tasks.settings import Settings
from s2v_tasks.webhooks.target import RefusedTargetError, Target, TargetPolicy

MESSAGE_SECONDS = 5.0  # maximum time of a receiver for one message
STEP_SECONDS = 3.0  # maximum time of a step for the messages of its job
# Statuses after which the same message may be accepted later: timeout, too early, too many requests, and all 5xx.
_RETRYABLE = frozenset({408, 425, 429})
# Errors whose message is a part of the answer.
_WITH_ANSWER = {http.client.BadStatusLine, http.client.UnknownProtocol}
_MIN_SECONDS = 0.1
_SLOW_SECONDS = 1.0
_ENCODED = "whsec_"


def deliver_due(
    metadata: MetadataStore, settings: Settings, *, seconds: float, job_id: str | None = None
) -> dict[str, Any]:
    """Send the messages that are due, of one job or of all, until none is left or `seconds` have passed.

    A receiver that does not accept a message is skipped for the rest of the round. After a slow failure so is every
    receiver on its host, so that others do not wait for it.
    """
    deadline = time.monotonic() + seconds
    policy = TargetPolicy.from_settings(settings)
    outcomes: Counter[str] = Counter(delivered=0, failed=0, pending=0, refused=0)
    failing_urls: set[str] = set()
    slow_hosts: set[str] = set()
    while (left := deadline - time.monotonic()) > 0:
        message = metadata.notifications.claim(job_id=job_id, skip_urls=failing_urls, skip_hosts=slow_hosts)
        if message is None:
            break
        started = time.monotonic()
        outcome = _send(metadata, message, settings, policy, min(left, MESSAGE_SECONDS))
        outcomes[outcome] += 1
        if outcome == "pending":
            failing_urls.add(message.url)
            if time.monotonic() - started > _SLOW_SECONDS:
                slow_hosts.add(urlsplit(message.url).netloc)
    return dict(outcomes)


def _send(
    metadata: MetadataStore,
    notification: Notification,
    settings: Settings,
    policy: TargetPolicy,
    seconds: float,
) -> str:
    """Send one message, record the outcome and return the status of the message."""
    logger = log.get_logger().bind(notification_id=notification.id, event_name=notification.event)
    try:
        if not settings.webhook_secret:
            raise RefusedTargetError("S2V_WEBHOOK_SECRET is not set: expected the secret that signs the messages.")
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


@dataclass(frozen=True)
class Message:
    """A message to a receiver. `delivery_id` is the same in all attempts, so that a receiver can drop a repetition."""

    delivery_id: int
    event: str
    payload: dict[str, Any]

    def body(self) -> bytes:
        return json.dumps(self.payload, ensure_ascii=False, sort_keys=True).encode()


def signed_headers(secret: str, message_id: str, timestamp: str, body: bytes) -> dict[str, str]:
    """Return the headers by which a receiver verifies sender, time and content of a message.

    A secret `whsec_...` is the base64 of the key; any other secret is the key itself. RefusedTargetError for a
    `whsec_...` that is not base64.
    """
    signature = base64.b64encode(_hmac(_key(secret), f"{message_id}.{timestamp}.", body).digest()).decode()
    return {
        "webhook-id": message_id,
        "webhook-timestamp": timestamp,
        "webhook-signature": f"v1,{signature}",
        "X-S2V-Delivery": message_id,
        "X-S2V-Timestamp": timestamp,
        "X-S2V-Signature": "sha256=" + _hmac(secret.encode(), f"{timestamp}.{message_id}.", body).hexdigest(),
    }


def deliver(url: str, message: Message, *, secret: str, policy: TargetPolicy, seconds: float) -> None:
    """POST the message; return when the receiver has answered 2xx, after `seconds` at the latest.

    RefusedTargetError: the URL is not allowed. PermanentError: the receiver refuses the message. TransientError: it may
    accept the message later. The body of the answer is not read.
    """
    deadline = time.monotonic() + seconds
    target = policy.resolve(url, seconds=seconds)
    body = message.body()
    headers = {
        "Host": target.host_header,
        "Content-Type": "application/json",
        "User-Agent": f"s2v-tasks/{__version__}",
        "Connection": "close",
        "X-S2V-Event": message.event,
        **signed_headers(secret, str(message.delivery_id), str(int(time.time())), body),
    }
    try:
        with _connection(target, deadline) as connection:
            connection.request("POST", target.path, body, headers)
            status = connection.getresponse().status
    except (OSError, http.client.HTTPException, ValueError) as error:
        late = time.monotonic() >= deadline - 0.01
        said = "the answer is not HTTP" if type(error) in _WITH_ANSWER else error
        reason = f"no answer within {seconds:.1f} s" if late else f"{type(error).__name__}: {said}"
        raise TransientError(f"{target.host!r} did not accept the message: {reason}.") from error
    if 200 <= status < 300:
        return
    if status >= 500 or status in _RETRYABLE:
        raise TransientError(f"{target.host!r} answered {status}.")
    hint = "; redirects are not followed, give the final URL" if 300 <= status < 400 else ""
    raise PermanentError(f"{target.host!r} answered {status}: expected 2xx{hint}.")


def _key(secret: str) -> bytes:
    if not secret.startswith(_ENCODED):
        return secret.encode()
    try:
        return base64.b64decode(secret.removeprefix(_ENCODED), validate=True)
    except binascii.Error as error:
        raise RefusedTargetError(
            f"S2V_WEBHOOK_SECRET begins with {_ENCODED}: expected base64 after it, as in Standard Webhooks."
        ) from error


def _hmac(key: bytes, prefix: str, body: bytes) -> "hmac.HMAC":
    return hmac.new(key, prefix.encode() + body, hashlib.sha256)


@contextmanager
def _connection(target: Target, deadline: float) -> Iterator[http.client.HTTPConnection]:
    """Open a connection to one of the verified addresses. At the deadline reading ends, also in a TLS handshake."""
    raw = _connect(target, deadline)
    timer_end = raw.dup()  # a second handle for the timer, because TLS takes over the first
    timer = threading.Timer(max(deadline - time.monotonic(), 0), _end_reading, [timer_end])
    timer.daemon = True
    timer.start()
    connection = http.client.HTTPConnection(target.host, target.port)
    try:
        connection.sock = raw
        if target.scheme == "https":
            connection.sock = ssl.create_default_context().wrap_socket(raw, server_hostname=target.host)
        yield connection
    finally:
        timer.cancel()
        timer.join()
        connection.close()
        timer_end.close()


def _connect(target: Target, deadline: float) -> socket.socket:
    for address in target.addresses[:-1]:
        with contextlib.suppress(OSError):  # the next one may answer
            return socket.create_connection((address, target.port), _left(deadline) / len(target.addresses))
    return socket.create_connection((target.addresses[-1], target.port), _left(deadline))


def _left(deadline: float) -> float:
    return max(deadline - time.monotonic(), _MIN_SECONDS)


def _end_reading(connection: socket.socket) -> None:
    """Let the reader find an end after what has arrived. If writing ended too, the kernel could drop what arrived."""
    with contextlib.suppress(OSError):  # the connection has ended already
        connection.shutdown(socket.SHUT_RD)
