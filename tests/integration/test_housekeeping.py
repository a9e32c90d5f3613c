"""Check housekeeping over a bucket with jobs in every status."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from s2v_tasks.housekeeping import Housekeeping
from s2v_tasks.metadata.housekeeping import HousekeepingRepository
from s2v_tasks.metadata.session import engine_from_settings
from s2v_tasks.metadata.store import MetadataStore
from s2v_tasks.metadata.tables import Job
from s2v_tasks.schemas.manifest import Artifact
from s2v_tasks.settings import Settings, load_settings
from s2v_tasks.storage.layout import JobLayout
from s2v_tasks.storage.objects import ListedObject, UnfinishedUpload
from s2v_tasks.storage.s3 import ObjectStore
from tests.integration.housekeeping_jobs import everything, make_job, manifest, publish, put


@pytest.fixture
def engine(s3_settings: Settings, postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[sa.Engine]:
    monkeypatch.setenv("S2V_DATABASE_URL", postgres_url)
    monkeypatch.setenv("S2V_RETENTION_DAYS", "0")
    load_settings.cache_clear()
    engine = engine_from_settings(load_settings())
    yield engine
    engine.dispose()


@pytest.fixture
def metadata(engine: sa.Engine) -> MetadataStore:
    return MetadataStore(engine)


@pytest.fixture
def store(engine: sa.Engine) -> ObjectStore:
    return ObjectStore.from_settings(load_settings())


Round = Callable[..., dict[str, Any]]


def command(*options: str) -> dict[str, Any]:
    """Runs one round of the command; `log` has the lines of the task's log."""
    line = [sys.executable, "-m", "s2v_tasks.cli", "housekeeping", "--json", *options]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    return json.loads(done.stdout) | {"log": done.stderr.splitlines()}


@pytest.fixture
def housekeeping(store: ObjectStore, metadata: MetadataStore, engine: sa.Engine) -> Round:
    """Runs one round in this process; returns its findings, applied or not."""

    def run(*gone_runs: str, apply: bool = False) -> dict[str, Any]:
        house = Housekeeping(store, metadata, load_settings())
        found = house.find(gone_runs)
        if apply:
            house.apply(found)
        return found.listing()

    return run


def test_it_deletes_exactly_what_its_dry_run_listed(
    store: ObjectStore, metadata: MetadataStore, housekeeping: Round
) -> None:
    """Only expired objects of ended jobs are deleted; objects of live jobs, published videos and reruns stay."""
    accepted = {name: put(store, f"drop/accepted/{name}/a.png")[0] for name in ("live", "published", "failed")}
    [rejected] = put(store, "drop/rejected/bad 🎬/error.json")
    put(store, "drop/incoming/new/a.png", "uploads/a/a.png", "jobs/never-seen/clips/0000/superseded/ab/clip.mp4")
    make_job(store, metadata, "live", image_uri=accepted["live"])
    expiring = make_job(store, metadata, "published", image_uri=accepted["published"])
    expiring += make_job(store, metadata, "failed", image_uri=accepted["failed"])
    expiring += make_job(store, metadata, "cancelled")
    make_job(store, metadata, "parent")
    metadata.jobs.succeed("published", *publish(store, "published"))
    metadata.jobs.fail("failed", "It had to be.")
    metadata.jobs.cancel("cancelled")
    metadata.jobs.fail("parent", "Its child goes on.")
    metadata.jobs.enqueue("child", {"parent_job_id": "parent", "from_clip": 1})
    before = everything(store)

    planned = command("--dry-run")
    assert set(planned["delete"]) == {*expiring, accepted["failed"], rejected}
    assert planned["delete_bytes"] == 5 * len(planned["delete"])
    assert everything(store) == before
    for uri in planned["delete"]:
        assert any("would_delete" in line and uri in line for line in planned["log"])

    applied = command("--apply")
    assert applied["delete"] == planned["delete"]
    assert everything(store) == before - set(planned["delete"])
    assert not any("would_" in line for line in applied["log"])
    assert housekeeping()["delete"] == []


def test_data_may_be_at_the_top_of_a_bucket(
    s3_settings: Settings, engine: sa.Engine, metadata: MetadataStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Jobs are distinguished from other objects, also without a prefix."""
    monkeypatch.setenv("S2V_DATA_URI", s3_settings.data_uri.removesuffix("/data"))
    load_settings.cache_clear()
    store = ObjectStore.from_settings(load_settings())
    expiring = make_job(store, metadata, "failed")
    metadata.jobs.fail("failed", "It had to be.")
    found = Housekeeping(store, metadata, load_settings()).find().listing()
    assert sorted(found["delete"]) == sorted(expiring)
    assert not any(found["differences"].values())


def test_nothing_is_deleted_before_its_retention_time(
    store: ObjectStore, metadata: MetadataStore, housekeeping: Round, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Objects younger than the retention time are kept."""
    make_job(store, metadata, "failed")
    metadata.jobs.fail("failed", "It had to be.")
    monkeypatch.setenv("S2V_RETENTION_DAYS", "1")
    load_settings.cache_clear()
    assert housekeeping()["delete"] == []


def aged(store: ObjectStore, monkeypatch: pytest.MonkeyPatch, days: dict[str, float]) -> None:
    """Give objects and uploads whose names end like a key the age in days of its value."""
    now = datetime.now(UTC)
    listing, unfinished = store.listing, store.unfinished_uploads

    def age(uri: str, otherwise: datetime) -> datetime:
        return next((now - timedelta(days=days[end]) for end in days if uri.endswith(end)), otherwise)

    def aged_listing(prefix: str) -> Iterator[ListedObject]:
        for item in listing(prefix):
            yield replace(item, modified_at=age(item.uri, item.modified_at))

    def aged_uploads(prefix: str) -> Iterator[UnfinishedUpload]:
        for item in unfinished(prefix):
            yield replace(item, started_at=age(item.uri, item.started_at))

    monkeypatch.setattr(store, "listing", aged_listing)
    monkeypatch.setattr(store, "unfinished_uploads", aged_uploads)


def test_each_object_has_its_own_age(
    store: ObjectStore, metadata: MetadataStore, engine: sa.Engine, housekeeping: Round, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Young objects of an old job stay; a dropped folder is as old as its youngest file."""
    monkeypatch.setenv("S2V_RETENTION_DAYS", "2")
    load_settings.cache_clear()
    clip, _, state = make_job(store, metadata, "failed")
    metadata.jobs.fail("failed", "It had to be.")
    with engine.begin() as connection:
        connection.execute(sa.update(Job).values(finished_at=datetime.now(UTC) - timedelta(days=9)))
    old = put(store, "drop/accepted/old/x.wav", "drop/accepted/old/y.png", "drop/rejected/bad/z.json")
    put(store, "drop/accepted/mixed/young.png", "drop/accepted/mixed/x.wav")
    days = {"clip.mp4": 3, "superseded/manifest.json": 1, ".safetensors": 2.1, "young.png": 1.9}
    aged(store, monkeypatch, days | {"x.wav": 5, "y.png": 2.1, "z.json": 4})
    found = housekeeping()["delete"]
    assert set(found) == {clip, state, *old}


def test_a_folder_of_which_one_file_is_needed_stays(
    store: ObjectStore, metadata: MetadataStore, housekeeping: Round
) -> None:
    """A dropped folder is deleted only if no job names any of its files."""
    kept = put(
        store, "drop/accepted/a/a.png", "drop/accepted/a/b.wav", "drop/accepted/c/c.mp4", "drop/accepted/c/d.txt"
    )
    gone = put(store, "drop/accepted/e/e.png", "drop/accepted/e/f.wav")
    metadata.jobs.enqueue(
        "job-a", {"image_uri": "s3://elsewhere/x.png", "audio_uri": kept[1], "pose_video_uri": kept[2]}
    )
    metadata.jobs.enqueue("job-b", {"image_uri": gone[0], "audio_uri": gone[1]})
    metadata.jobs.fail("job-b", "It had to be.")
    assert housekeeping()["delete"] == gone


def test_young_uploads_are_kept(
    store: ObjectStore, metadata: MetadataStore, housekeeping: Round, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An upload is kept for a day, whatever the retention time is, and longer if its job is started again."""
    make_job(store, metadata, "failed")
    metadata.jobs.fail("failed", "It had to be.")
    for name in (JobLayout("failed").motion(0), "uploads/0123/young.wav", "uploads/0123/old.wav"):
        key = store.uri(name).removeprefix(f"s3://{store.bucket}/")
        store._client.create_multipart_upload(Bucket=store.bucket, Key=key)
    aged(store, monkeypatch, {"young.wav": 0.99, "old.wav": 1.01, ".safetensors": 2})
    motion, old = store.uri(JobLayout("failed").motion(0)), store.uri("uploads/0123/old.wav")
    assert housekeeping()["abort_uploads"] == [motion, old]
    real = HousekeepingRepository.settled_jobs
    answers = [real, lambda *_: set()]  # started again between the listing and the deletion
    monkeypatch.setattr(HousekeepingRepository, "settled_jobs", lambda *arguments: answers.pop(0)(*arguments))
    housekeeping(apply=True)
    left = [upload.uri for prefix in ("jobs/", "uploads/") for upload in store.unfinished_uploads(prefix)]
    assert left == [motion, store.uri("uploads/0123/young.wav")]


def test_a_job_that_was_started_again_keeps_everything(
    store: ObjectStore, metadata: MetadataStore, engine: sa.Engine
) -> None:
    """A job that is started again between listing and deletion keeps its objects."""
    make_job(store, metadata, "failed")
    metadata.jobs.fail("failed", "It had to be.")
    before = everything(store)
    house = Housekeeping(store, metadata, load_settings())
    found = house.find()
    assert len(found.objects) == 3
    metadata.jobs.enqueue("failed", {})
    house.apply(found)
    assert everything(store) == before


def test_a_job_that_was_started_again_keeps_its_dropped_files(store: ObjectStore, metadata: MetadataStore) -> None:
    """The folder of a job that is started again between listing and deletion stays; other expired folders go."""
    kept = put(store, "drop/accepted/a/a.png", "drop/accepted/a/a.wav", "drop/accepted/a/prompt.txt")
    gone = put(store, "drop/accepted/b/b.png", "drop/rejected/c/error.json")
    request = {"image_uri": kept[0], "audio_uri": kept[1]}
    metadata.jobs.enqueue("failed", request)
    metadata.jobs.fail("failed", "It had to be.")
    before = everything(store)
    house = Housekeeping(store, metadata, load_settings())
    found = house.find()
    assert {item.uri for item in found.objects} == {*kept, *gone}
    metadata.jobs.enqueue("failed", request)
    house.apply(found)
    assert everything(store) == before - set(gone)


def test_unfinished_uploads_of_ended_jobs_are_aborted(
    store: ObjectStore, metadata: MetadataStore, housekeeping: Round
) -> None:
    """Uploads of ended jobs and of interrupted submissions are aborted; those of a live job are not."""
    for job_id in ("live", "failed"):
        make_job(store, metadata, job_id)
    for name in (JobLayout("live").motion(0), JobLayout("failed").motion(0), "uploads/0123/speech.wav"):
        key = store.uri(name).removeprefix(f"s3://{store.bucket}/")
        store._client.create_multipart_upload(Bucket=store.bucket, Key=key)  # moto: begun in 2010
    metadata.jobs.fail("failed", "It had to be.")
    given_up = [store.uri(JobLayout("failed").motion(0)), store.uri("uploads/0123/speech.wav")]
    assert housekeeping(apply=True)["abort_uploads"] == given_up
    assert not list(store.unfinished_uploads("uploads/"))
    assert [upload.uri for upload in store.unfinished_uploads("jobs/")] == [store.uri(JobLayout("live").motion(0))]


def test_a_job_whose_run_is_gone_is_closed(metadata: MetadataStore, engine: sa.Engine, housekeeping: Round) -> None:
    """The job fails, or is cancelled if that was requested; a job with a recent update stays open."""
    for job_id in ("gone", "stopped", "running", "busy"):
        metadata.jobs.enqueue(job_id, {}, dag_run_id=f"run-{job_id}")
        metadata.jobs.start(job_id)
    metadata.jobs.request_cancel("stopped")
    with engine.begin() as connection:
        silent = sa.update(Job).where(Job.job_id != "busy").values(updated_at=datetime.now(UTC) - timedelta(hours=2))
        connection.execute(silent)
    gone = [f"run-{job_id}" for job_id in ("gone", "stopped", "busy")]
    assert sorted(housekeeping(*gone)["close_jobs"]) == ["gone", "stopped"]
    housekeeping(*gone, apply=True)
    jobs = {job.job_id: job for job in metadata.jobs.recent()}
    assert {job_id: job.status for job_id, job in jobs.items()} == {
        "gone": "failed", "stopped": "cancelled", "running": "running", "busy": "running"
    }  # fmt: skip
    assert "disappeared" in (jobs["gone"].reason or "")


def test_differences_between_postgresql_and_s3_are_reported(
    store: ObjectStore, metadata: MetadataStore, housekeeping: Round
) -> None:
    """Lost objects, other sizes and unrecorded objects are reported and not changed."""
    for job_id in ("lost", "longer"):
        make_job(store, metadata, job_id)
    store.delete(JobLayout("lost").clip(0))
    [longer] = put(store, JobLayout("longer").clip(0))
    [unknown, strange] = put(store, "jobs/longer/notes.txt", "jobs/never-seen/plan.json")
    elsewhere = Artifact(key="s3://elsewhere/published.mp4", sha256="ab" * 32, size_bytes=7)
    metadata.artifacts.record(manifest("longer", elsewhere).model_copy(update={"step": "publish"}))
    before = everything(store)
    found = housekeeping(apply=True)["differences"]
    assert found == {
        "rows_without_object": (store.uri(JobLayout("lost").clip(0)),),
        "other_size": (longer,),
        "objects_without_row": (unknown,),
        "objects_without_job": (strange,),
    }
    assert everything(store) == before
