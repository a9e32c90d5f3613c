"""Repeat calls to S3 and PostgreSQL while the service does not answer: an outage costs time, but no work.

The step waits in the call and keeps its files on disk and, in a render, its GPU. Heartbeats continue. Each try is
logged. A cancellation ends the wait.
"""

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar, cast

from s2v_tasks.errors import UnavailableError
from s2v_tasks.log import get_logger
from s2v_tasks.metadata.sql import Repository

T = TypeVar("T")
LONGEST_PAUSE_SECONDS = 15.0
POLL_SECONDS = 0.5  # longest time until a pause notices a SIGTERM
# For tries after a SIGTERM; less than TERMINATION_GRACE_SECONDS.
LAST_SECONDS = 45.0

_tries_once: ContextVar[bool] = ContextVar("tries_once", default=False)


@dataclass
class RetryPolicy:
    """Duration of retries in an outage; after a SIGTERM (`asked_to_end`) only `LAST_SECONDS` remain."""

    seconds: float
    asked_to_end: Callable[[], bool] = lambda: False
    latest_outage: tuple[float, float] | None = None  # start and end by `time.monotonic`, of any service
    _end: float | None = None  # set after a SIGTERM

    def seconds_left(self, began: float) -> float:
        """Return the remaining seconds for tries in an outage that began at `began`."""
        now = time.monotonic()
        ends = began + self.seconds
        if self.asked_to_end():
            self._end = now + LAST_SECONDS if self._end is None else self._end
            ends = min(ends, self._end)
        return ends - now


@contextmanager
def tried_once() -> Iterator[None]:
    """Make each call in this block only once, because no later work depends on it."""
    token = _tries_once.set(True)
    try:
        yield
    finally:
        _tries_once.reset(token)


def retried(target: T, service: str, policy: RetryPolicy, before: Callable[[str], None] = lambda _: None) -> T:
    """Return `target` with methods that are repeated on UnavailableError until the outage has lasted `policy.seconds`.

    The methods must be idempotent. An outage begins with the first call that fails and ends with one that succeeds.
    `before` gets the name of the method before each try.
    """
    return cast("T", _Retried(target, service, policy, _Outage(), before))


@dataclass
class _Outage:
    """The current outage of a service, shared by all parts of its client; `began` is None while there is none."""

    began: float | None = None


class _Retried:
    def __init__(
        self, target: Any, service: str, policy: RetryPolicy, outage: _Outage, before: Callable[[str], None]
    ) -> None:
        self._target, self._service, self._policy, self._outage = target, service, policy, outage
        self._before = before

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._target, name)
        if isinstance(value, Repository):  # a part of the metadata store
            return _Retried(value, self._service, self._policy, self._outage, self._before)
        return partial(self._call, name, value) if callable(value) else value

    def _call(self, name: str, method: Callable[..., Any], /, *arguments: Any, **named: Any) -> Any:
        tries, began = 0, None
        while True:
            self._before(name)
            try:
                answer = method(*arguments, **named)
            except UnavailableError as error:
                if _tries_once.get():
                    raise
                tries += 1
                # Its own start counts, even if a call of another thread (the heartbeats) succeeds meanwhile.
                began = self._outage.began = began or self._outage.began or time.monotonic()
                if not self._pause(tries, began, error):
                    raise
            else:
                self._note_end()
                return answer

    def _note_end(self) -> None:
        """Record the end of an outage. Threads share the start, so it is read only once."""
        began, self._outage.began = self._outage.began, None
        if began is not None:
            now = time.monotonic()
            self._policy.latest_outage = (began, now)
            get_logger().warning("service_is_back", service=self._service, away_seconds=round(now - began, 1))

    def _pause(self, tries: int, began: float, error: UnavailableError) -> bool:
        """Wait until the next try; return False when no time is left for one."""
        left = self._policy.seconds_left(began)
        if left <= 0:
            return False
        pause = min(LONGEST_PAUSE_SECONDS, 2.0 ** min(tries - 1, 10)) * random.uniform(0.5, 1.0)
        get_logger().warning(
            "service_is_away",
            service=self._service,
            error=str(error),
            tries=tries,
            next_try_in_seconds=round(min(pause, left), 1),
            gives_up_in_seconds=round(left),
        )
        until = time.monotonic() + min(pause, left)
        ending = self._policy.asked_to_end()
        while (rest := until - time.monotonic()) > 0 and self._policy.asked_to_end() == ending:
            time.sleep(min(rest, POLL_SECONDS))
        return True
