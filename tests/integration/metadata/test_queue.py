"""Check jobs that wait for their run: their order, and retries."""

from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from s2v_tasks.errors import PermanentError
from s2v_tasks.metadata.ingestion import NewRow
from s2v_tasks.metadata.queue import JobQueue, NewJob
from s2v_tasks.metadata.store import MetadataStore
from s2v_tasks.schemas.job import Source
from tests.integration.metadata.conftest import job

DAY = datetime(2026, 11, 20, 12, tzinfo=UTC)


@pytest.fixture
def queue(engine: sa.Engine) -> JobQueue:
    """Five jobs of a batch, submitted in another order than that of their names."""
    jobs = [("b", "normal", 3), ("a", "normal", 5), ("c", "high", 4), ("e", "low", 0), ("d", "high", 9)]
    rows = [
        NewRow(number, name, NewJob(name, {"priority": priority}, submitted_at=DAY + timedelta(hours=hours)))
        for number, (name, priority, hours) in enumerate(jobs, 1)
    ]
    assert MetadataStore(engine).batches.register("batch", "s3://b/m.jsonl", "etag", rows) == 5
    return MetadataStore(engine).queue


def test_the_urgent_and_then_the_oldest_are_next(queue: JobQueue, metadata: MetadataStore) -> None:
    """Jobs start by priority, then age, up to the limit of running jobs; an ended job frees its place."""
    assert [turn.job_id for turn in queue.next(max_running=9)] == ["c", "d", "b", "a", "e"]
    assert (queue.num_waiting(), [turn.job_id for turn in queue.next(max_running=2)]) == (5, ["c", "d"])
    queue.mark_started(["c", "d"])
    assert (queue.num_waiting(), queue.next(max_running=2), queue.next(max_running=1)) == (3, [], [])
    metadata.jobs.fail("d", "No GPU.")
    assert [turn.job_id for turn in queue.next(max_running=2)] == ["b"]
    metadata.jobs.request_cancel("b")
    assert (queue.num_waiting(), [turn.job_id for turn in queue.next(max_running=2)]) == (2, ["a"])


def test_a_retry_queues_failed_and_cancelled_jobs_again(
    queue: JobQueue, metadata: MetadataStore, engine: sa.Engine
) -> None:
    """The jobs wait with a run id of their own; running and succeeded jobs do not change."""
    queue.mark_started(["a", "b", "c", "d"])
    metadata.jobs.fail("a", "No GPU.")
    metadata.jobs.request_cancel("b")
    metadata.jobs.cancel("b")
    metadata.jobs.succeed("c", "s3://o/c.mp4", "00")
    metadata.jobs.start("d")
    assert MetadataStore(engine).batches.retry("batch") == 2
    for name in ("a", "b"):
        record = job(metadata, name)
        assert (record.status, record.source) == ("queued", "batch")
        assert (record.reason, record.dag_run_id, record.finished_at, record.cancel_requested_at) == (None,) * 4
        assert record.events[-1].event == "job_retried"
    assert [job(metadata, name).status for name in "cde"] == ["succeeded", "running", "queued"]
    assert [turn.run_id for turn in queue.next(max_running=9)] == ["b--2", "a--2", "e"]
    queue.mark_started(["a", "b"])
    assert job(metadata, "a").dag_run_id == "a--2"
    metadata.jobs.fail("a", "No GPU.")
    assert MetadataStore(engine).batches.retry("batch") == 1
    assert [turn.run_id for turn in queue.next(max_running=9)] == ["a--3", "e"]


def test_a_retry_of_a_batch_queues_a_job_that_was_submitted_in_another_way(
    queue: JobQueue, metadata: MetadataStore
) -> None:
    """A failed job of a row waits in the queue, also if a person had started it with its id."""
    metadata.jobs.enqueue("by-hand", {}, source=Source.API, dag_run_id="by-hand")
    metadata.jobs.fail("by-hand", "No GPU.")
    metadata.batches.register("batch", "s3://b/m.jsonl", "etag", [NewRow(6, None, NewJob("by-hand", {}))])
    assert metadata.batches.retry("batch") == 1
    assert "by-hand--2" in [turn.run_id for turn in queue.next(max_running=9)]
    assert queue.num_waiting() == 6


def test_a_job_that_has_its_run_or_has_ended_is_not_started_again(queue: JobQueue, metadata: MetadataStore) -> None:
    """A job with a run keeps it, and one that was cancelled gets none."""
    queue.mark_started(["a"])
    metadata.jobs.fail("a", "No GPU.")
    metadata.jobs.cancel("b")
    before = job(metadata, "a"), job(metadata, "b")
    assert queue.mark_started(["a", "b"]) == 0
    assert (job(metadata, "a"), job(metadata, "b")) == before
    assert before[1].dag_run_id is None


def test_started_jobs_that_do_not_exist_are_refused(queue: JobQueue, metadata: MetadataStore) -> None:
    """The message names the unknown jobs, and the others do not change."""
    with pytest.raises(PermanentError, match=r"^x, y: expected jobs that exist; `s2v jobs`"):
        queue.mark_started(["y", "a", "x"])
    assert job(metadata, "a").dag_run_id is None
    assert queue.mark_started(["a", "b"]) == 2
