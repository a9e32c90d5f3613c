"""Check calls that are repeated while a service is unavailable."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa
from structlog.testing import capture_logs

from s2v_tasks.errors import ConfigurationError, TransientError, UnavailableError
from s2v_tasks.metadata.sql import Repository
from s2v_tasks.runtime import outages
from s2v_tasks.runtime.outages import LAST_SECONDS, LONGEST_PAUSE_SECONDS, RetryPolicy, retried, tried_once


class Clock:
    """A clock that only `sleep` moves; `at` runs functions at given times."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.at: dict[float, Callable[[], None]] = {}

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds
        for due in [due for due in self.at if due <= self.now]:
            self.at.pop(due)()


class Service:
    """Answers with its name while it is available, and counts its calls."""

    name = "store"

    def __init__(self, clock: Clock) -> None:
        self.error: Exception | None = None
        self.calls: list[float] = []
        self._clock = clock

    def get(self, key: str, *, size: int = 0) -> tuple[str, int]:
        self.calls.append(self._clock.now)
        if self.error:
            raise self.error
        return key, size

    def away(self) -> None:
        self.error = UnavailableError("connection refused")

    def back(self) -> None:
        self.error = None


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(outages, "time", SimpleNamespace(monotonic=lambda: clock.now, sleep=clock.sleep))
    return clock


@pytest.fixture
def service(clock: Clock) -> Service:
    return Service(clock)


def test_a_call_outlasts_an_outage(service: Service, clock: Clock) -> None:
    """A call is repeated until the service is back; each try and the end of the outage are logged."""
    service.away()
    clock.at[clock.now + 100] = service.back
    policy = RetryPolicy(900)
    store = retried(service, "S3", policy)
    assert store.name == "store"
    with capture_logs() as logs:
        assert store.get("a", size=3) == ("a", 3)
    tries, back = logs[:-1], logs[-1]
    assert [line["tries"] for line in tries] == list(range(1, len(service.calls)))
    assert {(line["event"], line["service"], line["error"], line["log_level"]) for line in tries} == {
        ("service_is_away", "S3", "connection refused", "warning")
    }
    assert (back["event"], back["away_seconds"]) == ("service_is_back", round(clock.now - 1000, 1))
    assert policy.latest_outage == (1000, clock.now)
    assert 100 <= clock.now - 1000 < 100 + LONGEST_PAUSE_SECONDS


def test_pauses_grow_to_a_bound_and_differ(service: Service, clock: Clock) -> None:
    """Pauses have jitter, so that processes do not call a returning server at the same time."""
    service.away()
    clock.at[clock.now + 200] = service.back
    retried(service, "S3", RetryPolicy(900)).get("a")
    pauses = [later - earlier for earlier, later in zip(service.calls, service.calls[1:], strict=False)]
    for tries, pause in enumerate(pauses):
        longest = min(LONGEST_PAUSE_SECONDS, 2.0**tries)
        assert longest / 2 <= pause <= longest
    assert len(set(pauses)) == len(pauses) > 10


def test_an_outage_that_lasts_too_long_is_given_up(service: Service, clock: Clock) -> None:
    """The last try is at the end of the time limit; later calls have no time until one succeeds."""
    store = retried(service, "S3", RetryPolicy(60))
    service.away()
    with pytest.raises(UnavailableError, match="refused"):
        store.get("a")
    assert service.calls[-1] == pytest.approx(1060)
    calls = len(service.calls)
    with pytest.raises(UnavailableError):
        store.get("b")
    assert len(service.calls) == calls + 1
    service.back()
    store.get("a")
    service.away()
    with pytest.raises(UnavailableError):
        store.get("a")
    assert service.calls[-1] == pytest.approx(1120)


def test_the_parts_of_a_store_share_the_outage(service: Service, clock: Clock) -> None:
    """Calls of a part of the metadata store are repeated within the remaining time of the same outage."""

    class Part(Repository):
        get = staticmethod(service.get)

    store = retried(SimpleNamespace(jobs=Part(sa.create_mock_engine("postgresql://", print))), "PG", RetryPolicy(60))  # type: ignore[arg-type]
    service.away()
    clock.at[clock.now + 20] = service.back
    assert store.jobs.get("a") == ("a", 0)
    assert len(service.calls) > 2
    service.away()
    with pytest.raises(UnavailableError):
        store.jobs.get("a")
    calls = len(service.calls)
    with pytest.raises(UnavailableError):
        store.jobs.get("b")
    assert len(service.calls) == calls + 1


def test_an_answer_to_another_thread_gives_a_call_no_more_time(service: Service, clock: Clock) -> None:
    """A success in another thread, such as a heartbeat, does not prolong the wait for a locked row."""
    store, locked = retried(service, "PostgreSQL", RetryPolicy(60)), UnavailableError("statement timeout")

    def want() -> None:
        clock.at[clock.now] = lambda: store.get("beat")  # in the pause behind this try
        assert clock.now < 1100
        raise locked

    service.want = want  # type: ignore[attr-defined]
    with pytest.raises(UnavailableError, match="statement timeout"):
        store.want()  # type: ignore[attr-defined]
    assert clock.now == pytest.approx(1060)


def test_two_threads_may_see_the_end_of_an_outage(
    service: Service, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If two threads see the end of an outage, it is logged once."""
    store = retried(service, "PostgreSQL", RetryPolicy(60))
    service.away()
    clock.at[clock.now + 0.1] = service.back  # the second try succeeds
    others = [lambda: store.get("beat")]

    def asked_for_the_time() -> float:
        if len(service.calls) == 2 and others:
            others.pop()()
        return clock.now

    monkeypatch.setattr(outages.time, "monotonic", asked_for_the_time)
    with capture_logs() as logs:
        assert store.get("a") == ("a", 0)
    assert others == []
    assert [line["event"] for line in logs].count("service_is_back") == 1


def test_a_service_that_returns_is_noticed_soon() -> None:
    """The longest pause between tries is a quarter of a minute."""
    assert LONGEST_PAUSE_SECONDS <= 15


def test_the_last_second_of_an_outage_is_waited_for(service: Service, clock: Clock) -> None:
    """A last try is made at the time limit, even if less than a second was left."""
    service.away()
    with pytest.raises(UnavailableError):
        retried(service, "S3", RetryPolicy(0.25)).get("a")
    assert service.calls == [1000, 1000.25]


def test_no_time_means_one_try(service: Service) -> None:
    """With S2V_RETRY_SECONDS=0 nothing is repeated."""
    service.away()
    with pytest.raises(UnavailableError):
        retried(service, "S3", RetryPolicy(0)).get("a")
    assert len(service.calls) == 1


@pytest.mark.parametrize("error", [TransientError("damaged"), ConfigurationError("no bucket"), ValueError("bug")])
def test_only_an_outage_is_waited_for(service: Service, error: Exception) -> None:
    """Other errors are raised at once."""
    service.error = error
    with pytest.raises(type(error), match=str(error)):
        retried(service, "S3", RetryPolicy(900)).get("a")
    assert len(service.calls) == 1


def test_calls_without_retries_are_tried_once(service: Service, clock: Clock) -> None:
    """Such a call does not start the time of an outage, and calls after the block are repeated again."""
    store = retried(service, "PostgreSQL", RetryPolicy(60))
    service.away()
    with pytest.raises(UnavailableError), tried_once():
        store.get("a")
    assert len(service.calls) == 1
    clock.now += 600
    clock.at[clock.now + 20] = service.back
    assert store.get("a") == ("a", 0)


def test_a_process_that_is_asked_to_end_tries_for_a_short_while(service: Service, clock: Clock) -> None:
    """After SIGTERM the next try is made at once, and all services together have LAST_SECONDS left."""
    asked: list[Any] = []
    policy = RetryPolicy(900, lambda: bool(asked))
    stores = [retried(service, name, policy) for name in ("S3", "PostgreSQL")]
    service.away()
    clock.at[1300.0] = lambda: asked.append(True)
    for store in stores:
        with pytest.raises(UnavailableError):
            store.get("a")
    noticed = next(call for call in service.calls if call >= 1300)
    assert noticed < 1300 + outages.POLL_SECONDS
    assert service.calls[-1] == pytest.approx(noticed + LAST_SECONDS)
    assert service.calls[-2] == pytest.approx(noticed + LAST_SECONDS)


def test_a_sigterm_gives_no_more_time_than_there_was(service: Service, clock: Clock) -> None:
    """SIGTERM near the end of the time limit does not prolong it."""
    asked: list[Any] = []
    service.away()
    clock.at[1050.0] = lambda: asked.append(True)
    with pytest.raises(UnavailableError):
        retried(service, "S3", RetryPolicy(60, lambda: bool(asked))).get("a")
    assert service.calls[-1] == pytest.approx(1060)


def test_the_last_tries_fit_into_the_grace_of_a_process() -> None:
    """LAST_SECONDS is at most half of the time between SIGTERM and SIGKILL."""
    from s2v_tasks.orchestration.step_commands import TERMINATION_GRACE_SECONDS

    assert LAST_SECONDS <= TERMINATION_GRACE_SECONDS / 2
