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
def housekeeping(engine: sa.Engine) -> HousekeepingRepository:
    """A job of each status with inputs of its own and a run; those that have ended ended two days ago."""
    with engine.begin() as connection:
        for hours, status in enumerate(STATUSES):
            request = {"image_uri": f"s3://in/{status}.png", "audio_uri": f"s3://in/{status}.wav", "prompt": "A."}
            values = {"status": status, "request": request, "dag_run_id": f"run-{status}"}
            values |= {"created_at": NOW - timedelta(days=3, hours=hours), "updated_at": NOW - timedelta(minutes=20)}
            if status in {"succeeded", "failed", "cancelled"}:
                values["finished_at"] = NOW - timedelta(days=2, hours=hours)
            connection.execute(sa.insert(Job).values(job_id=status, **values))
    return MetadataStore(engine).housekeeping


def test_jobs_that_ended_long_ago_are_settled(housekeeping: HousekeepingRepository, engine: sa.Engine) -> None:
    """Jobs that run, ended later, or have a running rerun are not settled."""
    assert housekeeping.job_ids() == set(STATUSES)
    assert housekeeping.settled_jobs(NOW) == {"succeeded", "failed", "cancelled"}
    assert housekeeping.settled_jobs(NOW - timedelta(days=2, hours=3)) == {"cancelled"}
    with engine.begin() as connection:
        for child, parent, status in (("x", "failed", "running"), ("y", "cancelled", "failed")):
            connection.execute(sa.insert(Job).values(job_id=child, parent_job_id=parent, status=status))
    assert housekeeping.settled_jobs(NOW) == {"succeeded", "cancelled"}


def test_named_inputs_are_those_of_open_and_succeeded_jobs(
    housekeeping: HousekeepingRepository, engine: sa.Engine
) -> None:
    """Pose videos count as inputs; inputs of failed and cancelled jobs do not."""
    with engine.begin() as connection:
        request = {"pose_video_uri": "s3://in/pose.mp4", "image_uri": None, "webhook_url": "https://hook"}
        connection.execute(sa.insert(Job).values(job_id="x", status="queued", request=request))
        connection.execute(sa.insert(Job).values(job_id="y", status="queued"))
    kept = {f"s3://in/{status}.{kind}" for status in ("queued", "running", "succeeded") for kind in ("png", "wav")}
    assert housekeeping.named_inputs() == kept | {"s3://in/pose.mp4"}


def test_runs_of_silent_jobs_are_found(
    housekeeping: HousekeepingRepository, engine: sa.Engine, metadata: MetadataStore
) -> None:
    """Open jobs with a run but without an update for a quarter of an hour are found, the oldest first."""
    silent = [OpenRun("running", "run-running"), OpenRun("queued", "run-queued")]
    assert housekeeping.silent_runs() == silent
    assert sorted(housekeeping.silent_runs(at_most=5)) == sorted(silent)
    assert len(housekeeping.silent_runs(at_most=1)) == 1
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
    assert housekeeping.silent_runs() == [OpenRun("queued", "run-queued")]


def test_artifacts_are_listed_with_their_job_and_size(housekeeping: HousekeepingRepository, engine: sa.Engine) -> None:
    """Every artifact is returned by its key."""
    sizes = {"jobs/failed/plan.json": ("failed", 7), "jobs/queued/clips/0000/clip.mp4": ("queued", 5 * 1024**3)}
    with engine.begin() as connection:
        for key, (job_id, size) in sizes.items():
            row = {"key": key, "job_id": job_id, "size_bytes": size, "step": "x", "sha256": "00"}
            connection.execute(sa.insert(ArtifactRow).values(**row))
    assert housekeeping.artifacts() == {key: StoredArtifact(*value) for key, value in sizes.items()}
