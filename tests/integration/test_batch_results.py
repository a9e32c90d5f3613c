"""Check the results of batches: the state, the files beside the manifest, and the costs."""

import csv
import io
import json
from typing import Any

import pytest
import sqlalchemy as sa

from s2v_tasks.errors import PermanentError
from s2v_tasks.ingestion.batch_manifest import RowError
from s2v_tasks.ingestion.batches import csv_of
from s2v_tasks.metadata.ingestion_tables import Batch
from s2v_tasks.metadata.tables import Attempt, Job
from tests.integration.batch_site import Site, rows


def test_a_batch_is_summed_up_beside_its_manifest(site: Site) -> None:
    """The summary has each row with its outcome, then the totals; the batch ends when all its jobs have."""
    site.put(rows(3))
    batch_id = site.batches.start(site.uri)["batch_id"]
    done, failed, waiting = (job.job_id for job in site.queue.next(max_running=3))
    site.jobs.succeed(done, "s3://out/a.mp4", "ab" * 32)
    site.jobs.fail(failed, "The speech is silent.")
    assert site.batches.state(batch_id) == {
        "batch_id": batch_id,
        "jobs": {"failed": 1, "queued": 1, "succeeded": 1},
        "ended": False,
    }
    site.jobs.fail(waiting, "No GPU.")
    assert site.batches.state(batch_id)["ended"]
    numbers = site.batches.summarise(batch_id)
    assert (numbers["rows"], numbers["jobs"]) == (3, {"succeeded": 1, "failed": 2})
    assert json.loads(site.store.get_bytes(f"{site.uri}.summary.json")) == numbers
    table = list(csv.DictReader(io.StringIO(site.store.get_bytes(f"{site.uri}.summary.csv").decode())))
    assert [(row["line"], row["row_id"], row["status"], row["reason"] or row["video_uri"]) for row in table] == [
        ("1", "row-0", "succeeded", "s3://out/a.mp4"),
        ("2", "row-1", "failed", "The speech is silent."),
        ("3", "row-2", "failed", "No GPU."),
    ]


def test_costs_of_a_batch_are_summed_by_currency(site: Site, engine: sa.Engine) -> None:
    """Only finished jobs count in the seconds of video; the batch ends with the summary after its last job."""
    site.put(rows(6))
    batch_id = site.batches.start(site.uri)["batch_id"]
    jobs = [turn.job_id for turn in site.queue.next(max_running=6)]
    prices: list[dict[str, Any]] = [
        {"num_frames": 24, "cost_per_gpu_hour": 36.001, "currency": "EUR"},
        {"num_frames": 72, "cost_per_gpu_hour": 3.6, "currency": "USD"},
        {"num_frames": 400, "cost_per_gpu_hour": 7.2, "currency": "USD"},
        {},
        {"currency": "USD"},
        {"cost_per_gpu_hour": 5.0},
    ]
    with engine.begin() as connection:
        for number, (job_id, price) in enumerate(zip(jobs, prices, strict=True), 1):
            row = {"job_id": job_id, "clip_index": 0, "attempt": 1, "outcome": "succeeded", "world_size": 1}
            connection.execute(sa.insert(Attempt).values(**row, gpu_seconds=100.0 * number + 0.0004))
            if price:
                connection.execute(sa.update(Job).where(Job.job_id == job_id).values(**price))
    for job_id in (*jobs[:2], *jobs[4:]):
        site.jobs.succeed(job_id, "s3://out/a.mp4", "ab" * 32)
    site.jobs.fail(jobs[2], "No GPU.")
    numbers = site.batches.summarise(batch_id)
    assert numbers == {
        "batch_id": batch_id, "manifest_uri": site.uri, "summary_uri": f"{site.uri}.summary.csv", "rows": 6,
        "jobs": {"succeeded": 4, "failed": 1, "queued": 1}, "video_seconds": 6.0, "gpu_seconds": 2100.002,
        "cost": {"EUR": 1.0, "USD": 0.8},
    }  # fmt: skip

    def status() -> str:
        with engine.connect() as connection:
            return str(connection.execute(sa.select(Batch.status)).scalar_one())

    assert status() == "running"
    site.jobs.fail(jobs[3], "No GPU.")
    site.batches.summarise(batch_id)
    assert status() == "finished"


def test_an_unknown_batch_is_an_error(site: Site) -> None:
    """The message says where to find the id of a batch."""
    with pytest.raises(PermanentError, match="start-batch"):
        site.batches.summarise("nothing")


def test_an_unknown_batch_has_not_ended(site: Site) -> None:
    """The state of an id that no manifest has is refused; a batch that waits for nothing would have ended."""
    with pytest.raises(PermanentError, match="Batch 'nobody' does not exist: `s2v start-batch` prints the id"):
        site.batches.state("nobody")


def test_a_batch_has_ended_when_each_job_succeeded_failed_or_was_cancelled(site: Site) -> None:
    """All three statuses count as ends, also in one batch."""
    site.put(rows(3))
    batch_id = site.batches.start(site.uri)["batch_id"]
    done, failed, cancelled = (job.job_id for job in site.queue.next(max_running=3))
    site.jobs.succeed(done, "s3://out/a.mp4", "ab" * 32)
    site.jobs.fail(failed, "No GPU.")
    assert not site.batches.state(batch_id)["ended"]
    site.jobs.cancel(cancelled)
    assert site.batches.state(batch_id) == {
        "batch_id": batch_id,
        "jobs": {"succeeded": 1, "failed": 1, "cancelled": 1},
        "ended": True,
    }


def test_a_table_holds_any_text_and_any_number_of_rows() -> None:
    """Text that UTF-8 cannot encode is replaced, and a table without rows is empty."""
    assert csv_of([RowError(3, "a", 'not "\ud800"')]) == b'line,row_id,error\r\n3,a,"not ""?"""\r\n'
    assert csv_of([]) == b""


@pytest.mark.parametrize(
    ("row_id", "cell"),
    [("=1+1", "'=1+1"), ("@SUM(A1)", "'@SUM(A1)"), ("-2+3", "'-2+3"), ("+A1", "'+A1"), ("-5", "-5"), ("+4.5", "+4.5")],
)
def test_an_id_is_no_formula_of_a_spreadsheet(row_id: str, cell: str) -> None:
    """A program for tables shows the id of a row and computes nothing; numbers are unchanged."""
    assert csv_of([RowError(3, row_id, "no")]).decode() == f"line,row_id,error\r\n3,{cell},no\r\n"


def test_reports_have_content_types(site: Site) -> None:
    """Each file beside a manifest has its content type, and JSON is indented."""
    site.put(rows(1))
    site.batches.summarise(site.batches.start(site.uri)["batch_id"])
    assert site.store.get_bytes(f"{site.uri}.summary.json").count(b"\n  ") >= 5
    site.put([rows(1)[0] | {"num_clip": 0}])
    with pytest.raises(PermanentError):
        site.batches.start(site.uri)
    for ending, kind in (("summary.csv", "text/csv"), ("summary.json", "application/json"), ("errors.csv", "text/csv")):
        key = f"{site.uri}.{ending}".removeprefix(f"s3://{site.store.bucket}/")
        found = site.store._client.head_object(Bucket=site.store.bucket, Key=key)
        assert found["ContentType"] == kind
