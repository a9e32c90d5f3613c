"""Check polls of many viewers: one read per second for all of them."""

import threading
import time
from collections.abc import Mapping

import pytest

from s2v_tasks.metadata.store import MetadataStore
from s2v_tasks.storage.s3 import ObjectStore
from s2v_tasks.web import polls
from s2v_tasks.web.polls import Recent
from tests.web.conftest import Login
from tests.web.sample_job import add_job


class Reader:
    """Counts its reads; knows the jobs whose id has one letter."""

    def __init__(self) -> None:
        self.reads: list[list[str]] = []

    def __call__(self, job_ids: list[str]) -> Mapping[str, int]:
        """Return the number of reads until now for each known job."""
        self.reads.append(job_ids)
        time.sleep(0.05)
        return {job_id: len(self.reads) for job_id in job_ids if len(job_id) == 1}


def test_many_polls_at_once_are_one_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of 20 threads get the result of one read; a page with more jobs reads only the others."""
    monkeypatch.setattr(polls, "KEPT_SECONDS", 3600)  # however slowly the threads start
    reader = Reader()
    recent, found = Recent(reader), []
    threads = [threading.Thread(target=lambda: found.append(recent.of(["a", "none"]))) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [{"a": 1}] * 20
    assert recent.of(["b", "a"]) == {"b": 2, "a": 1}
    assert reader.reads == [["a", "none"], ["b"]]


def test_a_kept_state_is_read_again_after_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """A state, or the absence of a job, is kept for a second, and old ones are deleted."""
    monkeypatch.setattr(polls, "KEPT_SECONDS", 0.1)
    monkeypatch.setattr(polls, "MOST_KEPT", 3)
    reader = Reader()
    recent = Recent(reader)
    for _ in range(2):
        recent.of(["a", "none"])
        time.sleep(0.15)
    assert reader.reads == [["a", "none"]] * 2
    recent.of(["b", "c"])
    recent.of(["d"])
    assert len(recent._kept) <= 4


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


def test_pages_see_a_change_within_a_second(login: Login, metadata: MetadataStore, store: ObjectStore) -> None:
    """Gallery and page of a job share the state, and a change shows after a second."""
    add_job(metadata, store, "talk")
    browser = login("vera")
    before = browser.get("/s2v/job/talk/state.json").json()
    assert browser.get("/s2v/videos/changes.json?jobs=talk,other").json()["talk"]["status"] == before["status"]
    metadata.jobs.fail("talk", "A node was lost.")
    time.sleep(polls.KEPT_SECONDS + 0.05)
    after = browser.get("/s2v/job/talk/state.json").json()
    assert (before["status"], after["status"]) == ("running", "failed")
    assert after["version"] > before["version"]


def test_a_state_is_not_forgotten_during_a_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """A state that expires while others are read is still returned."""
    monkeypatch.setattr(polls, "KEPT_SECONDS", 0.1)
    monkeypatch.setattr(polls, "MOST_KEPT", 0)
    recent = Recent(Reader())
    recent.of(["a"])
    time.sleep(0.03)
    assert recent.of(["a", "b"]).keys() == {"a", "b"}
