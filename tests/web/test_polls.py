"""Check polls of many viewers: one read per second for all of them."""

import threading
from collections.abc import Mapping

import pytest

from s2v_tasks.metadata.store import MetadataStore
from s2v_tasks.storage.s3 import ObjectStore
from s2v_tasks.web import polls
from s2v_tasks.web.polls import Recent
from tests.web.conftest import Login
from tests.web.sample_job import add_job


class Clock:
    """The clock of the polls, which moves only if a test sets it."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def monotonic(self) -> float:
        return self.seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock that stands still."""
    clock = Clock()
    monkeypatch.setattr(polls, "time", clock)
    return clock


class Reader:
    """Counts its reads, each of which takes some time; knows the jobs whose id has one letter."""

    def __init__(self, clock: Clock, *, read_seconds: float = 0.05) -> None:
        self.reads: list[list[str]] = []
        self._clock, self._read_seconds = clock, read_seconds

    def __call__(self, job_ids: list[str]) -> Mapping[str, int]:
        """Return the number of reads until now for each known job."""
        self.reads.append(job_ids)
        self._clock.seconds += self._read_seconds
        return {job_id: len(self.reads) for job_id in job_ids if len(job_id) == 1}


def test_many_polls_at_once_are_one_read(clock: Clock) -> None:
    """All of 20 threads get the result of one read; a page with more jobs reads only the others."""
    reader = Reader(clock)
    recent, found = Recent(reader), []
    threads = [threading.Thread(target=lambda: found.append(recent.of(["a", "none"]))) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [{"a": 1}] * 20
    assert recent.of(["b", "a"]) == {"b": 2, "a": 1}
    assert reader.reads == [["a", "none"], ["b"]]


def test_a_kept_state_is_read_again_after_a_second(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """A state, or the absence of a job, is kept for a second, and old ones are deleted."""
    monkeypatch.setattr(polls, "MOST_KEPT", 3)
    reader = Reader(clock)
    recent = Recent(reader)
    began = clock.seconds
    for seconds in (0, 0.9, 1.0, 1.9):
        clock.seconds = began + seconds
        recent.of(["a", "none"])
    assert reader.reads == [["a", "none"]] * 2
    clock.seconds += 1
    recent.of(["b", "c"])
    clock.seconds += 1
    recent.of(["d"])
    assert recent._kept.keys() == {"d"}


def test_a_failed_read_is_not_kept() -> None:
    """After a failed read the next poll reads again."""
    answers = iter([OSError("away"), {"a": 5}])

    def read(_: list[str]) -> Mapping[str, int]:
        answer = next(answers)
        if isinstance(answer, OSError):
            raise answer
        return answer

    recent = Recent(read)
    with pytest.raises(OSError, match="away"):
        recent.of(["a"])
    assert recent.of(["a"]) == {"a": 5}


def test_pages_see_a_change_within_a_second(
    clock: Clock, login: Login, metadata: MetadataStore, store: ObjectStore
) -> None:
    """Gallery and page of a job share the state, and a change shows after a second."""
    add_job(metadata, store, "talk")
    browser = login("vera")
    before = browser.get("/s2v/job/talk/state.json").json()
    assert browser.get("/s2v/videos/changes.json?jobs=talk,other").json()["talk"]["status"] == before["status"]
    metadata.jobs.fail("talk", "A node was lost.")
    clock.seconds += polls.KEPT_SECONDS
    after = browser.get("/s2v/job/talk/state.json").json()
    assert (before["status"], after["status"]) == ("running", "failed")
    assert after["version"] > before["version"]


def test_a_state_is_not_forgotten_during_a_read(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """A state that expires while others are read is still returned."""
    monkeypatch.setattr(polls, "MOST_KEPT", 0)
    recent = Recent(Reader(clock, read_seconds=0.9))
    recent.of(["a"])
    assert recent.of(["a", "b"]) == {"a": 1, "b": 2}
