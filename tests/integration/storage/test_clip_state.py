"""Save and find the state of an interrupted clip in the store."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from s2v_tasks.schemas.manifest import Manifest, PartialClipFacts, Producer
from s2v_tasks.schemas.quality import Take, TakeRecord
from s2v_tasks.storage.artifacts import ArtifactStore
from s2v_tasks.storage.clip_state import PartialClip, TakeRecords
from s2v_tasks.storage.layout import JobLayout
from s2v_tasks.storage.s3 import ObjectStore

LAYOUT = JobLayout("job-1")
NOW = datetime(2026, 11, 20, tzinfo=UTC)


@pytest.fixture
def artifacts(object_store: ObjectStore) -> ArtifactStore:
    return ArtifactStore(object_store)


def saved(partial: PartialClip, folder: Path, step: int) -> str:
    """Save a state after `step` steps; return its key."""
    path = folder / "state"
    path.write_bytes(b"state %d" % step)
    partial.save(path, PartialClipFacts(solver_step=step, render_seconds=float(step)))
    manifest = partial.find()
    assert manifest is not None
    assert manifest.facts == PartialClipFacts(solver_step=step, render_seconds=float(step))
    return manifest.outputs["state"].key


def test_a_later_state_takes_the_place_of_an_earlier_one(artifacts: ArtifactStore, tmp_path: Path) -> None:
    """The newest state is found and the earlier one is deleted; a state saved twice at one step stays."""
    partial = PartialClip(artifacts, LAYOUT, 3, "f1")
    assert partial.find() is None
    first, second = saved(partial, tmp_path, 2), saved(partial, tmp_path, 5)
    assert second == "jobs/job-1/clips/0003/partial/f1/state-0005.safetensors"
    assert not artifacts.store.exists(first)
    assert saved(partial, tmp_path, 5) == second
    assert artifacts.store.exists(second)


def test_a_state_belongs_to_one_clip_of_one_fingerprint(artifacts: ArtifactStore, tmp_path: Path) -> None:
    """Another clip or another fingerprint finds no state."""
    saved(PartialClip(artifacts, LAYOUT, 3, "f1"), tmp_path, 2)
    assert PartialClip(artifacts, LAYOUT, 3, "f2").find() is None
    assert PartialClip(artifacts, LAYOUT, 4, "f1").find() is None


def test_a_state_that_is_lost_is_not_found(artifacts: ArtifactStore, tmp_path: Path) -> None:
    """A manifest whose state is missing is ignored, so that the clip starts at its first step."""
    partial = PartialClip(artifacts, LAYOUT, 3, "f1")
    artifacts.store.delete(saved(partial, tmp_path, 2))
    assert partial.find() is None


def test_a_dropped_state_leaves_nothing(artifacts: ArtifactStore, tmp_path: Path) -> None:
    """Manifest and state are deleted; deleting again does nothing."""
    partial = PartialClip(artifacts, LAYOUT, 3, "f1")
    key = saved(partial, tmp_path, 2)
    partial.drop()
    assert partial.find() is None
    assert not artifacts.store.exists(key)
    partial.drop()


def test_a_record_describes_the_clip_of_its_kept_take(object_store: ObjectStore) -> None:
    """An undecided record, or one that keeps another take, is not used for a stored clip."""
    records = TakeRecords(object_store, LAYOUT)
    takes = tuple(Take(take=number, seed=number, fingerprint=f"f{number}", measure_seconds=0.0) for number in range(2))
    clip = Manifest(
        step="render_clip", job_id="job-1", clip_index=3, fingerprint="f1", producer=Producer(package_version="1"),
        inputs={}, outputs={}, started_at=NOW, finished_at=NOW, facts={"start_frame": 0, "end_frame": 16},
    )  # fmt: skip
    assert records.kept(clip) is None
    assert records.kept(None) is None
    for kept, described in ((None, None), (0, None), (1, takes[1])):
        record = TakeRecord(clip_index=3, fingerprint="f0", takes=takes, kept=kept)
        records.write(record)
        assert records.kept(clip) == (None if described is None else (record, described))
    assert records.begin(3, "f0") == record
    assert records.begin(3, "f9") == TakeRecord(clip_index=3, fingerprint="f9")
