"""Check the queries of housekeeping among jobs of all kinds."""

from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from s2v_tasks.metadata.housekeeping import HousekeepingRepository, OpenRun, StoredArtifact
from s2v_tasks.metadata.store import MetadataStore
from s2v_tasks.metadata.tables import ArtifactRow, Clip, Job

NOW = datetime.now(UTC)
STATUSES = ("queued", "running", "succeeded", "failed", "cancelled")


@pytest.fixture
def upkeep(engine: sa.Engine) -> HousekeepingRepository:
    """A job of each status that ended, if it did, two days ago; with inputs of its own and a run."""
    with engine.begin() as connection:
        for hours, status in enumerate(STATUSES):
            request = {"image_uri": f"s3://in/{status}.png", "audio_uri": f"s3://in/{status}.wav", "prompt": "A."}
            values = {"status": status, "request": request, "dag_run_id": f"run-{status}"}
            values |= {"created_at": NOW - timedelta(days=3, hours=hours), "updated_at": NOW - timedelta(minutes=20)}
            if status in {"succeeded", "failed", "cancelled"}:
                values["finished_at"] = NOW - timedelta(days=2, hours=hours)
            connection.execute(sa.insert(Job).values(job_id=status, **values))
    return MetadataStore(engine).housekeeping


def test_jobs_that_ended_long_ago_are_settled(upkeep: HousekeepingRepository, engine: sa.Engine) -> None:
    """Not those that go on, ended later, or are needed by a rerun that goes on."""
    assert upkeep.job_ids() == set(STATUSES)
    assert upkeep.settled_jobs(NOW) == {"succeeded", "failed", "cancelled"}
    assert upkeep.settled_jobs(NOW - timedelta(days=2, hours=3)) == {"cancelled"}
    with engine.begin() as connection:
        for child, parent, status in (("x", "failed", "running"), ("y", "cancelled", "failed")):
            connection.execute(sa.insert(Job).values(job_id=child, parent_job_id=parent, status=status))
    assert upkeep.settled_jobs(NOW) == {"succeeded", "cancelled"}


def test_inputs_of_jobs_that_may_be_started_again_are_kept(upkeep: HousekeepingRepository, engine: sa.Engine) -> None:
    """Those of failed and cancelled jobs are not; a pose video is an input, too, and an empty field is none."""
    with engine.begin() as connection:
        request = {"pose_video_uri": "s3://in/pose.mp4", "image_uri": None, "webhook_url": "https://hook"}
        connection.execute(sa.insert(Job).values(job_id="x", status="queued", request=request))
        connection.execute(sa.insert(Job).values(job_id="y", status="queued"))
    kept = {f"s3://in/{status}.{kind}" for status in ("queued", "running", "succeeded") for kind in ("png", "wav")}
    assert upkeep.named_inputs() == kept | {"s3://in/pose.mp4"}


def test_runs_of_silent_jobs_are_found(
    upkeep: HousekeepingRepository, engine: sa.Engine, metadata: MetadataStore
) -> None:
    """Open ones with a run, of which nothing was heard for a quarter of an hour, the oldest first."""
    silent = [OpenRun("running", "run-running"), OpenRun("queued", "run-queued")]
    assert upkeep.silent_runs() == silent
    assert sorted(upkeep.silent_runs(at_most=5)) == sorted(silent)
    assert len(upkeep.silent_runs(at_most=1)) == 1
    with engine.begin() as connection:
        connection.execute(sa.insert(Job).values(job_id="new", status="running", dag_run_id="run-new"))
        old = {"status": "running", "updated_at": NOW - timedelta(hours=1)}
        connection.execute(sa.insert(Job).values(job_id="by-hand", **old))
        for index, minutes in enumerate((30, 14)):
            clip = {"clip_index": index, "status": "rendering", "start_frame": 0, "end_frame": 1}
            at = datetime.now(UTC) - timedelta(minutes=minutes)
            connection.execute(sa.insert(Clip).values(job_id="running", updated_at=at, **clip))
        connection.execute(
            sa.insert(Clip).values(
                job_id="queued", clip_index=0, status="rendering", start_frame=0, end_frame=1,
                updated_at=NOW - timedelta(minutes=16),
            )
        )  # fmt: skip
    assert upkeep.silent_runs() == [OpenRun("queued", "run-queued")]


def test_artifacts_are_listed_with_their_job_and_size(upkeep: HousekeepingRepository, engine: sa.Engine) -> None:
    """Every row, by its key."""
    sizes = {"jobs/failed/plan.json": ("failed", 7), "jobs/queued/clips/0000/clip.mp4": ("queued", 5 * 1024**3)}
    with engine.begin() as connection:
        for key, (job_id, size) in sizes.items():
            row = {"key": key, "job_id": job_id, "size_bytes": size, "step": "x", "sha256": "00"}
            connection.execute(sa.insert(ArtifactRow).values(**row))
    assert upkeep.artifacts() == {key: StoredArtifact(*value) for key, value in sizes.items()}
