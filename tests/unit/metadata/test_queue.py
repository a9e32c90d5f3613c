"""Jobs that wait for their run: who is next, and what another try takes back."""

from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from s2v_tasks.metadata.batches import BatchLedger, NewRow
from s2v_tasks.metadata.queue import JobQueue, WaitingJob
from s2v_tasks.metadata.records import JobRecord
from s2v_tasks.metadata.repository import Ledger

DAY = datetime(2026, 11, 20, 12, tzinfo=UTC)


def job(ledger: Ledger, job_id: str) -> JobRecord:
    record = ledger.job(job_id)
    assert record is not None
    return record


@pytest.fixture
def queue(engine: sa.Engine) -> JobQueue:
    """Five jobs of a batch, handed in at other times than in order of their names."""
    jobs = [("b", "normal", 3), ("a", "normal", 5), ("c", "high", 4), ("e", "low", 0), ("d", "high", 9)]
    rows = [
        NewRow(number, name, WaitingJob(name, {"priority": priority}, handed_in_at=DAY + timedelta(hours=hours)))
        for number, (name, priority, hours) in enumerate(jobs, 1)
    ]
    assert BatchLedger(engine).register("batch", "s3://b/m.jsonl", "etag", rows) == 5
    return JobQueue(engine)


def test_the_urgent_and_then_the_oldest_are_next(queue: JobQueue, ledger: Ledger) -> None:
    """So many that at most the wished number runs; a place is free when a job ends or was cancelled."""
    assert [turn.job_id for turn in queue.next(max_running=9)] == ["c", "d", "b", "a", "e"]
    assert (queue.num_waiting(), [turn.job_id for turn in queue.next(max_running=2)]) == (5, ["c", "d"])
    queue.mark_started(["c", "d"])
    assert (queue.num_waiting(), queue.next(max_running=2), queue.next(max_running=1)) == (3, [], [])
    ledger.job_failed("d", "No GPU.")
    assert [turn.job_id for turn in queue.next(max_running=2)] == ["b"]
    ledger.request_cancel("b")
    assert (queue.num_waiting(), [turn.job_id for turn in queue.next(max_running=2)]) == (2, ["a"])


def test_a_retry_takes_back_all_that_ended_the_job(queue: JobQueue, ledger: Ledger, engine: sa.Engine) -> None:
    """Failed and cancelled jobs wait again, with a run id of their own; those that run or succeeded are left alone."""
    queue.mark_started(["a", "b", "c", "d"])
    ledger.job_failed("a", "No GPU.")
    ledger.request_cancel("b")
    ledger.job_cancelled("b")
    ledger.job_succeeded("c", "s3://o/c.mp4", "00")
    ledger.job_started("d")
    assert BatchLedger(engine).retry("batch") == 2
    for name in ("a", "b"):
        record = job(ledger, name)
        assert (record.status, record.source) == ("queued", "batch")
        assert (record.reason, record.dag_run_id, record.finished_at, record.cancel_requested_at) == (None,) * 4
        assert record.events[-1].event == "job_retried"
    assert [job(ledger, name).status for name in "cde"] == ["succeeded", "running", "queued"]
    assert [turn.run_id for turn in queue.next(max_running=9)] == ["b--2", "a--2", "e"]
    queue.mark_started(["a", "b"])
    assert job(ledger, "a").dag_run_id == "a--2"
    ledger.job_failed("a", "No GPU.")
    assert BatchLedger(engine).retry("batch") == 1
    assert [turn.run_id for turn in queue.next(max_running=9)] == ["a--3", "e"]


def test_a_job_that_has_its_run_or_has_ended_is_not_started_again(queue: JobQueue, ledger: Ledger) -> None:
    """It keeps the run that it has, and one that was cancelled meanwhile gets none."""
    queue.mark_started(["a"])
    ledger.job_failed("a", "No GPU.")
    ledger.job_cancelled("b")
    before = job(ledger, "a"), job(ledger, "b")
    queue.mark_started(["a", "b"])
    assert (job(ledger, "a"), job(ledger, "b")) == before
    assert before[1].dag_run_id is None
