"""Send one message to one receiver: signed, with a limit on the whole call, without following redirects.

The signature is that of Standard Webhooks (https://www.standardwebhooks.com): `webhook-signature` is `v1,` and the
base64 of HMAC-SHA256 over `<webhook-id>.<webhook-timestamp>.<body>`. `X-S2V-Signature` is sent, too, for receivers of
earlier versions. docs/how-to/webhooks.md describes the verification.
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
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from s2v_tasks import __version__
from s2v_tasks.errors import PermanentError, TransientError
from s2v_tasks.webhooks.target import RefusedTargetError, Target, TargetPolicy

# Statuses after which the same message may be accepted later: timeout, too early, too many requests, and all 5xx.
_RETRYABLE = frozenset({408, 425, 429})
_MIN_SECONDS = 0.1
_ENCODED = "whsec_"


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

    RefusedTargetError: this installation does not call the URL. PermanentError: the receiver refuses the message.
    TransientError: it may accept the message later. The body of the answer is not read.
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
        reason = f"no answer within {seconds:.1f} s" if late else f"{type(error).__name__}: {error}"
        raise TransientError(f"{target.host!r} did not take the message: {reason}.") from error
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
            f"S2V_WEBHOOK_SECRET begins with {_ENCODED}: expected base64 behind it, as Standard Webhooks has it."
        ) from error


def _hmac(key: bytes, prefix: str, body: bytes) -> "hmac.HMAC":
    return hmac.new(key, prefix.encode() + body, hashlib.sha256)


@contextmanager
def _connection(target: Target, deadline: float) -> Iterator[http.client.HTTPConnection]:
    """Open a connection to one of the verified addresses. At the deadline it is closed, also in a TLS handshake."""
    raw = _connect(target, deadline)
    timer_end = raw.dup()  # a handle for the timer: TLS takes over the other one
    timer = threading.Timer(max(deadline - time.monotonic(), 0), _shut_down, [timer_end])
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
        raw.close()
        timer_end.close()


def _connect(target: Target, deadline: float) -> socket.socket:
    for address in target.addresses[:-1]:
        with contextlib.suppress(OSError):  # the next one may answer
            return socket.create_connection((address, target.port), _left(deadline) / len(target.addresses))
    return socket.create_connection((target.addresses[-1], target.port), _left(deadline))


def _left(deadline: float) -> float:
    return max(deadline - time.monotonic(), _MIN_SECONDS)


def _shut_down(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):  # the connection has ended already
        connection.shutdown(socket.SHUT_RDWR)
