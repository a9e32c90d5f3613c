"""Check batches: versions of a manifest, their rows in order, and the outcome of each row."""

from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from s2v_tasks.metadata.ingestion import BatchRepository, NewRow
from s2v_tasks.metadata.ingestion_tables import Batch
from s2v_tasks.metadata.queue import NewJob
from s2v_tasks.metadata.store import MetadataStore
from s2v_tasks.metadata.tables import Attempt, Job
from tests.integration.metadata.conftest import job

URI = "s3://b/m.jsonl"


@pytest.fixture
def batches(engine: sa.Engine) -> BatchRepository:
    """A version of three rows, and another that shares one of its jobs."""
    batches = MetadataStore(engine).batches
    jobs = {name: NewJob(name, {"preset": "quick", "labels": {"row": name}, "n": name}) for name in "zyxw"}
    rows = [NewRow(3, "third", jobs["x"]), NewRow(1, "fi\0rst", jobs["z"]), NewRow(2, None, jobs["y"])]
    assert batches.register("one", URI, "etag-1", rows) == 3
    assert batches.register("two", URI + "2", "etag-2", [NewRow(1, "a", jobs["y"]), NewRow(2, "b", jobs["w"])]) == 1
    return batches


def test_rows_queue_their_jobs(batches: BatchRepository, metadata: MetadataStore) -> None:
    """Each row queues a job with its request and the source `batch`."""
    record = job(metadata, "x")
    assert (record.status, record.source, record.preset, record.labels) == ("queued", "batch", "quick", {"row": "x"})
    assert record.request == {"preset": "quick", "labels": {"row": "x"}, "n": "x"}
    [event] = record.events
    assert (event.event, event.detail) == ("job_queued", {"source": "batch"})
    assert (batches.manifest_uri("one"), batches.manifest_uri("two"), batches.manifest_uri("no")) == (
        URI,
        URI + "2",
        None,
    )


def test_outcomes_are_those_of_each_row(batches: BatchRepository, metadata: MetadataStore, engine: sa.Engine) -> None:
    """Outcomes come in the order of the manifest, with GPU-seconds and cost of all attempts."""
    with engine.begin() as connection:
        price = {"cost_per_gpu_hour": 36.0, "currency": "EUR", "num_frames": 96}
        connection.execute(sa.update(Job).where(Job.job_id == "y").values(**price))
        for attempt, (job_id, outcome, seconds) in enumerate((
            ("y", "lost", 10.0),
            ("y", "succeeded", 40.0),
            ("w", "lost", 5.0),
        )):
            row = {"job_id": job_id, "clip_index": 0, "attempt": attempt, "outcome": outcome, "world_size": 1}
            connection.execute(sa.insert(Attempt).values(**row, gpu_seconds=seconds))
    metadata.jobs.succeed("y", "s3://o/y.mp4", "00")
    metadata.jobs.fail("z", "No face.")
    first, second, third = batches.outcomes("one")
    assert [(row.line, row.row_id, row.job_id) for row in (first, second, third)] == [
        (1, "fi\ufffdrst", "z"), (2, None, "y"), (3, "third", "x")
    ]  # fmt: skip
    assert (first.status, first.reason, first.video_uri, first.gpu_seconds, first.cost) == (
        "failed",
        "No face.",
        None,
        0,
        None,
    )
    assert (second.status, second.video_uri, second.num_frames) == ("succeeded", "s3://o/y.mp4", 96)
    assert (second.gpu_seconds, second.cost, second.currency) == (50.0, pytest.approx(0.5), "EUR")
    assert (third.status, third.finished_at) == ("queued", None)
    assert second.finished_at is not None
    assert second.created_at <= second.finished_at
    assert batches.counts("one") == {"failed": 1, "queued": 1, "succeeded": 1}
    assert batches.counts("two") == {"queued": 1, "succeeded": 1}


def test_a_retry_is_for_the_jobs_of_its_batch(
    batches: BatchRepository, metadata: MetadataStore, engine: sa.Engine
) -> None:
    """Jobs of other batches do not change; a job without a source gets the source `batch`."""
    with engine.begin() as connection:
        connection.execute(sa.update(Job).where(Job.job_id == "z").values(source=None))
    for name in "zxw":
        metadata.jobs.fail(name, "No GPU.")
    assert batches.retry("one") == 2
    assert [job(metadata, name).status for name in "zyxw"] == ["queued", "queued", "queued", "failed"]
    assert job(metadata, "z").source == "batch"
    assert batches.retry("one") == 0
    assert {turn.run_id for turn in MetadataStore(engine).queue.next(max_running=9)} == {"z--2", "y", "x--2"}


def test_a_version_that_is_registered_again_runs_again(batches: BatchRepository, engine: sa.Engine) -> None:
    """Only a running version can finish, its end stays, and existing jobs are not queued again."""
    batches.finish("one")
    columns = sa.select(Batch.batch_id, Batch.status, Batch.finished_at, Batch.updated_at, Batch.num_rows, Batch.etag)
    with engine.connect() as connection:
        one, two = connection.execute(columns.order_by(Batch.batch_id)).all()
    assert (one.status, one.num_rows, one.etag) == ("finished", 3, "etag-1")
    assert (two.status, two.finished_at, two.num_rows) == ("running", None, 2)
    earlier = datetime.now(UTC) - timedelta(days=1)
    with engine.begin() as connection:
        connection.execute(
            sa.update(Batch).where(Batch.batch_id == "one").values(finished_at=earlier, updated_at=earlier)
        )
    batches.finish("one")
    with engine.connect() as connection:
        assert connection.execute(columns.where(Batch.batch_id == "one")).one().finished_at == earlier
    assert batches.register("one", URI, "etag-1", [NewRow(3, "third", NewJob("x", {}))]) == 0
    with engine.connect() as connection:
        again = connection.execute(columns.where(Batch.batch_id == "one")).one()
    assert (again.status, again.finished_at) == ("running", None)
    assert again.updated_at > earlier
    with engine.begin() as connection:
        connection.execute(sa.update(Batch).where(Batch.batch_id == "one").values(updated_at=earlier))
    batches.finish("one")
    with engine.connect() as connection:
        assert connection.execute(columns.where(Batch.batch_id == "one")).one().updated_at > earlier
    assert len(batches.outcomes("one")) == 3
