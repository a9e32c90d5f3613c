"""Check how jobs are found, cancelled, closed and started again."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from s2v_tasks.metadata.ingestion import NewRow
from s2v_tasks.metadata.queue import NewJob
from s2v_tasks.metadata.store import MetadataStore
from s2v_tasks.metadata.tables import ArtifactRow, Attempt, Clip, Event, Job
from s2v_tasks.schemas.manifest import ClipFacts
from s2v_tasks.schemas.plan import Plan
from tests.integration.metadata.conftest import job

FACTS = ClipFacts(start_frame=0, end_frame=16)

Planned = Callable[..., MetadataStore]


def names(record: Job) -> list[str]:
    return [event.event for event in record.events]


def test_jobs_are_found_by_status_and_labels(metadata: MetadataStore, engine: sa.Engine) -> None:
    """All given labels must match; jobs come newest first, and by name if their times are equal."""
    for job_id, labels in (("b", {"team": "news", "show": "a"}), ("c", {"team": "news"}), ("a", {"team": "sport"})):
        metadata.jobs.enqueue(job_id, {"labels": labels})
    with engine.begin() as connection:
        connection.execute(sa.update(Job).values(created_at=datetime(2026, 11, 20, tzinfo=UTC)))
        later = datetime(2026, 11, 21, tzinfo=UTC)
        connection.execute(sa.update(Job).where(Job.job_id == "c").values(created_at=later))
    metadata.jobs.fail("b", "Why.")
    assert [record.job_id for record in metadata.jobs.recent()] == ["c", "a", "b"]
    assert [record.job_id for record in metadata.jobs.recent(status="queued")] == ["c", "a"]
    assert [record.job_id for record in metadata.jobs.recent(labels={"team": "news"})] == ["c", "b"]
    assert [record.job_id for record in metadata.jobs.recent(labels={"team": "news", "show": "a"})] == ["b"]
    assert metadata.jobs.recent(status="failed", labels={"team": "sport"}) == []


def test_the_parts_of_a_job_come_in_order(planned: Planned, engine: sa.Engine) -> None:
    """Attempts come by time, artifacts by key, clips by index and events in their order, of this job alone."""
    metadata = planned(3)
    metadata.jobs.enqueue("job-2", {})
    with engine.begin() as connection:
        for minutes, clip_index in ((3, 0), (1, 2), (2, 1)):
            at = datetime(2026, 11, 20, 12, minutes, tzinfo=UTC)
            row = {"clip_index": clip_index, "attempt": 1, "started_at": at, "world_size": 1}
            connection.execute(sa.insert(Attempt).values(job_id="job-1", **row))
            connection.execute(sa.insert(Attempt).values(job_id="job-2", **row))
            key = {"key": f"k{clip_index}", "step": "x", "sha256": "00", "size_bytes": 1}
            connection.execute(sa.insert(ArtifactRow).values(job_id="job-1", **key))
    metadata.clips.fail("job-1", 2, "Why.")
    record = job(metadata)
    assert [clip.clip_index for clip in record.clips] == [0, 1, 2]
    assert [attempt.clip_index for attempt in record.attempts] == [2, 1, 0]
    assert [artifact.key for artifact in record.artifacts] == ["k0", "k1", "k2"]
    assert names(record) == ["job_queued", "job_started", "job_planned", "clip_failed"]
    assert (record.events[-1].clip_index, record.events[-1].detail) == (2, {"reason": "Why."})
    assert record.events[2].detail["num_frames"] == 144


def test_a_cancel_is_requested_once(planned: Planned) -> None:
    """The time of the first request stays; a job that has ended or does not exist accepts none."""
    metadata = planned(3)
    assert (metadata.jobs.is_cancel_requested("job-1"), metadata.jobs.request_cancel("job-1")) == (False, "running")
    first = job(metadata).cancel_requested_at
    assert metadata.jobs.is_cancel_requested("job-1")
    assert metadata.jobs.request_cancel("job-1") == "running"
    assert (job(metadata).cancel_requested_at, names(job(metadata)).count("cancel_requested")) == (first, 1)
    metadata.jobs.enqueue("job-2", {})
    metadata.jobs.fail("job-2", "Why.")
    assert (metadata.jobs.request_cancel("job-2"), metadata.jobs.is_cancel_requested("job-2")) == ("failed", False)
    assert (metadata.jobs.request_cancel("job-3"), metadata.jobs.is_cancel_requested("job-3")) == (None, False)


def test_a_cancelled_job_keeps_what_is_finished(planned: Planned) -> None:
    """A running job and its attempts end; a second cancel, or one after the video, changes nothing."""
    metadata = planned(3)
    metadata.clips.start("job-1", 0, "f0")
    metadata.clips.succeed("job-1", 0, facts=FACTS, reused=False)
    metadata.clips.start("job-1", 1, "f1")
    metadata.jobs.request_cancel("job-1")
    metadata.jobs.cancel("job-1")
    record = job(metadata)
    assert (record.status, record.reason) == (
        "cancelled", "Cancelled by a person; 1 of 3 clips are finished and are reused."
    )  # fmt: skip
    assert record.finished_at is not None
    assert [clip.status for clip in record.clips] == ["succeeded", "pending", "pending"]
    assert [(a.outcome, a.reason) for a in record.attempts] == [
        ("succeeded", None), ("failed", "The job was cancelled.")
    ]  # fmt: skip
    assert record.events[-1].detail == {"reason": record.reason}
    metadata.jobs.cancel("job-1")
    assert job(metadata) == record
    metadata.jobs.succeed("job-1", "s3://o/v.mp4", "00")
    done = job(metadata)
    metadata.jobs.cancel("job-1")
    assert job(metadata) == done


def test_a_failed_job_is_cancelled_while_its_run_renders_other_clips(planned: Planned) -> None:
    """Clips of other chains stop and do not restart the job; after `close_job` there is nothing to cancel."""
    metadata = planned(3)
    request = job(metadata).request or {}
    metadata.jobs.enqueue("job-1", request, dag_run_id="run-1")
    metadata.jobs.start("job-1")
    metadata.clips.start("job-1", 1, "f1")
    metadata.jobs.fail("job-1", "Clip 0 is black.")
    assert metadata.jobs.is_cancellable("job-1")
    assert (metadata.jobs.request_cancel("job-1"), metadata.jobs.is_cancel_requested("job-1")) == ("cancelled", True)
    metadata.jobs.start("job-1", by_clip=True)
    record = job(metadata)
    assert (record.status, record.reason) == (
        "cancelled",
        "Cancelled by a person; 0 of 3 clips are finished and are reused. It had failed: Clip 0 is black.",
    )
    assert names(record)[-2:] == ["cancel_requested", "job_cancelled"]
    assert (metadata.jobs.request_cancel("job-1"), job(metadata)) == ("cancelled", record)

    metadata.jobs.enqueue("job-1", request, dag_run_id="run-2")
    metadata.jobs.fail("job-1", "Clip 0 is black again.")
    metadata.events.record("job-1", "step_finished", step="close_job")
    assert not metadata.jobs.is_cancellable("job-1")
    assert (metadata.jobs.request_cancel("job-1"), metadata.jobs.is_cancel_requested("job-1")) == ("failed", False)


def test_a_cancel_may_have_its_own_reason(planned: Planned) -> None:
    """A given reason takes the place of the count of clips."""
    metadata = planned()
    metadata.jobs.cancel("job-1", "The approval was rejected.")
    assert job(metadata).reason == "The approval was rejected."


def test_a_start_clears_an_earlier_cancel(metadata: MetadataStore) -> None:
    """A new start clears the cancel of an ended job; one that is still being cancelled stays so."""
    metadata.jobs.enqueue("job-1", {}, dag_run_id="run-1")
    metadata.jobs.request_cancel("job-1")
    metadata.jobs.enqueue("job-1", {})
    metadata.jobs.clear_cancel("job-1", "run-1")
    assert metadata.jobs.is_cancel_requested("job-1")
    metadata.jobs.cancel("job-1")
    metadata.jobs.clear_cancel("job-1", "run-2")
    assert (metadata.jobs.is_cancel_requested("job-1"), job(metadata).dag_run_id) == (False, "run-1")
    metadata.jobs.request_cancel("job-1")
    assert not metadata.jobs.is_cancel_requested("job-1")


def test_a_cancel_that_met_the_start_of_a_waiting_job_stands(metadata: MetadataStore) -> None:
    """The cancel of a waiting job holds for the run that the queue starts; another run clears it."""
    for name, source in (("waits", "batch"), ("other", "batch"), ("by-hand", "cli")):
        metadata.jobs.enqueue(name, {}, source=source)  # type: ignore[arg-type]
        metadata.jobs.request_cancel(name)
        metadata.jobs.cancel(name)
    metadata.jobs.clear_cancel("waits", "waits")
    metadata.jobs.clear_cancel("other", "by-a-person")
    metadata.jobs.clear_cancel("by-hand", "by-hand")
    assert [metadata.jobs.is_cancel_requested(name) for name in ("waits", "other", "by-hand")] == [True, False, False]
    assert [job(metadata, name).dag_run_id for name in ("waits", "other", "by-hand")] == ["waits", None, None]


@pytest.mark.parametrize("cancelled", [False, True])
def test_a_job_whose_run_is_lost_ends(planned: Planned, cancelled: bool) -> None:
    """The job fails, or is cancelled if a cancel was requested, and the run is in its event."""
    metadata = planned(3)
    metadata.jobs.enqueue("job-1", {"prompt": "A person speaks."}, dag_run_id="run-1")
    metadata.jobs.start("job-1")
    metadata.clips.start("job-1", 1, "f1")
    if cancelled:
        metadata.jobs.request_cancel("job-1")
    assert not metadata.jobs.close_lost("job-1", "run-2")
    assert not metadata.jobs.close_lost("job-2", "run-1")
    assert metadata.jobs.close_lost("job-1", "run-1")
    record = job(metadata)
    assert record.status == ("cancelled" if cancelled else "failed")
    assert ("Cancelled by a person" if cancelled else "Its run disappeared from Airflow") in (record.reason or "")
    assert (record.events[-1].event, record.events[-1].detail) == ("run_lost", {"dag_run_id": "run-1"})
    assert record.attempts[0].outcome == ("failed" if cancelled else "lost")
    assert record.attempts[0].reason == ("The job was cancelled." if cancelled else record.reason)


def test_a_job_that_is_queued_again_begins_anew(planned: Planned) -> None:
    """The new request replaces the old one; times and reason are cleared, clips and video stay."""
    metadata = planned(3)
    metadata.jobs.succeed("job-1", "s3://o/v.mp4", "00")
    metadata.jobs.fail("job-1", "The webhook is gone.")
    metadata.jobs.enqueue("job-1", {"prompt": "B."}, source="ui")
    record = job(metadata)
    assert (record.status, record.request, record.source) == ("queued", {"prompt": "B."}, "ui")
    assert (record.started_at, record.finished_at, record.reason) == (None, None, None)
    assert (len(record.clips), record.video_uri) == (3, "s3://o/v.mp4")


def test_conditions_are_found_in_the_jobs_that_encoded_the_same(metadata: MetadataStore, engine: sa.Engine) -> None:
    """The three latest jobs with the same fingerprint of the conditions are returned."""
    encoding, rendering = "encode_conditions", "render_clip"
    rows = [("a", 5, "f", encoding), ("b", 1, "f", encoding), ("c", 3, "f", encoding), ("d", 4, "f", encoding)]
    rows += [("e", 0, "g", encoding), ("g", 0, "f", rendering)]
    with engine.begin() as connection:
        for job_id, hours, fingerprint, step in rows:
            connection.execute(sa.insert(Job).values(job_id=job_id, status="succeeded"))
            at = datetime(2026, 11, 20, tzinfo=UTC) - timedelta(hours=hours)
            row = {"key": job_id, "step": step, "fingerprint": fingerprint, "sha256": "00", "size_bytes": 1}
            connection.execute(sa.insert(ArtifactRow).values(job_id=job_id, updated_at=at, **row))
    assert metadata.artifacts.jobs_with_conditions("f") == ["b", "c", "d"]
    assert metadata.artifacts.jobs_with_conditions("h") == []


def test_a_start_that_failed_is_over_when_it_was_closed(metadata: MetadataStore, engine: sa.Engine) -> None:
    """A clip starts a failed job again only after close_job has finished for that job."""
    for name in ("job-1", "job-2"):
        metadata.jobs.enqueue(name, {})
        metadata.jobs.fail(name, "Why.")
    metadata.events.record("job-1", "step_finished", step="stitch")
    metadata.events.record("job-1", "step_failed", step="close_job")
    metadata.events.record("job-2", "step_finished", step="close_job")
    metadata.jobs.start("job-1", by_clip=True)
    metadata.jobs.start("job-2", by_clip=True)
    assert [job(metadata, name).status for name in ("job-1", "job-2")] == ["failed", "running"]
    with engine.connect() as connection:
        count = sa.select(sa.func.count()).where(Event.event == "job_started")
        assert connection.execute(count).scalar_one() == 1


def test_every_change_renews_the_time_of_a_job(
    metadata: MetadataStore, plan: Callable[..., Plan], engine: sa.Engine
) -> None:
    """Each change of a job or a clip renews `updated_at`, by which silent jobs are found."""
    old = datetime(2026, 11, 20, tzinfo=UTC)

    def refreshed(change: Callable[[], object], table: type[Job | Clip] = Job) -> bool:
        with engine.begin() as connection:
            connection.execute(sa.update(table).values(updated_at=old))
        change()
        with engine.connect() as connection:
            times = connection.execute(sa.select(table.updated_at).where(table.job_id == "job-1")).scalars().all()
        return max(times) > old

    batches = MetadataStore(engine).batches
    batches.register("batch", "s3://b/m", "e", [NewRow(1, None, NewJob("job-1", {}))])
    assert refreshed(lambda: MetadataStore(engine).queue.mark_started(["job-1"]))
    assert refreshed(lambda: metadata.jobs.enqueue("job-1", {}))
    assert refreshed(lambda: metadata.jobs.start("job-1"))
    assert refreshed(lambda: metadata.jobs.record_plan("job-1", plan(1)))
    assert refreshed(lambda: metadata.jobs.record_plan("job-1", plan(3)), Clip)
    assert refreshed(lambda: metadata.clips.start("job-1", 1, "f"), Clip)
    assert refreshed(lambda: metadata.clips.record_progress("job-1", 1, 1, 2), Clip)
    assert refreshed(lambda: metadata.clips.fail("job-1", 1, "Why."), Clip)
    metadata.clips.record_progress("job-1", 2, 1, 2)
    assert job(metadata).clips[2].status == "rendering"
    assert refreshed(lambda: metadata.jobs.fail("job-1", "Why."), Clip)
    assert refreshed(lambda: batches.retry("batch"))
    assert refreshed(lambda: metadata.jobs.request_cancel("job-1"))
    assert refreshed(lambda: metadata.jobs.cancel("job-1"))
