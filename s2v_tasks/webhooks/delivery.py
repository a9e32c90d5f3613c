"""Sends one message to one receiver: signed, bounded in time, without following it anywhere.

The receiver learns who sent it and when from `X-S2V-Signature`: HMAC-SHA256 with the shared secret over
`<X-S2V-Timestamp>.<X-S2V-Delivery>.<body>`. docs/how-to/webhooks.md has the other side.
"""

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
from s2v_tasks.webhooks.target import Target, TargetPolicy

# Answers after which the same message may be taken later: timeout, too early, too many, and all 5xx.
_RETRYABLE = frozenset({408, 425, 429})
_SHORTEST_SECONDS = 0.1


@dataclass(frozen=True)
class Message:
    """What is sent. `delivery_id` stays the same over all attempts, so that a receiver can drop a repeated one."""

    delivery_id: int
    event: str
    payload: dict[str, Any]

    def body(self) -> bytes:
        return json.dumps(self.payload, ensure_ascii=False, sort_keys=True).encode()


def signature(secret: str, timestamp: str, delivery_id: str, body: bytes) -> str:
    """The value of `X-S2V-Signature`."""
    signed = f"{timestamp}.{delivery_id}.".encode() + body
    return "sha256=" + hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest()


def deliver(url: str, message: Message, *, secret: str, policy: TargetPolicy, seconds: float) -> None:
    """POST the message; returns when the receiver answered 2xx, and after `seconds` at the latest.

    RefusedTargetError: this installation does not call the URL. PermanentError: the receiver will not take it.
    TransientError: it may take it later. What a receiver writes in its answer is not read.
    """
    deadline = time.monotonic() + seconds
    target = policy.resolve(url, seconds=seconds)
    body, timestamp = message.body(), str(int(time.time()))
    headers = {
        "Host": target.host_header,
        "Content-Type": "application/json",
        "User-Agent": f"s2v-tasks/{__version__}",
        "X-S2V-Event": message.event,
        "X-S2V-Delivery": str(message.delivery_id),
        "X-S2V-Timestamp": timestamp,
        "X-S2V-Signature": signature(secret, timestamp, str(message.delivery_id), body),
        "Connection": "close",
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


@contextmanager
def _connection(target: Target, deadline: float) -> Iterator[http.client.HTTPConnection]:
    """A connection to one of the addresses that were checked. At the deadline it is cut, whatever it waits for."""
    raw = _connect(target, deadline)
    cut = raw.dup()  # its own handle on the connection: TLS takes the other one over
    timer = threading.Timer(max(deadline - time.monotonic(), 0), _shut_down, [cut])
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
        cut.close()


def _connect(target: Target, deadline: float) -> socket.socket:
    for address in target.addresses[:-1]:
        with contextlib.suppress(OSError):  # the next one may answer
            return socket.create_connection((address, target.port), _left(deadline) / len(target.addresses))
    return socket.create_connection((target.addresses[-1], target.port), _left(deadline))


def _left(deadline: float) -> float:
    return max(deadline - time.monotonic(), _SHORTEST_SECONDS)


def _shut_down(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):  # it ended by itself
        connection.shutdown(socket.SHUT_RDWR)
