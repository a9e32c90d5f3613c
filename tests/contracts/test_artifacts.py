"""Check that complete outputs are reused, and that missing or incomplete outputs are made again."""

from collections.abc import Callable
from pathlib import Path

import pytest

from s2v_tasks.errors import PermanentError, TransientError
from s2v_tasks.schemas.manifest import AssemblyFacts
from s2v_tasks.schemas.steps import MUX_AUDIO, RENDER_CLIP, STITCH
from s2v_tasks.storage.artifacts import ArtifactStore, Build, Built, OutputFile, Produced, Work, producer
from s2v_tasks.storage.layout import JobLayout
from s2v_tasks.storage.s3 import ObjectStore
from tests.contracts.artifact_builds import FACTS, LAYOUT, SPEECH, clip_build, not_built, produce


def test_a_manifest_states_outputs_and_inputs(store: ObjectStore) -> None:
    """The stored manifest has step, fingerprint, producer, inputs, outputs with checksums, facts and times."""
    manifest, reused = produce(store, "f1", clip_build(b"1"))
    assert not reused
    assert ArtifactStore(store).read_manifest(LAYOUT.clip_manifest(0)) == manifest
    assert (manifest.step, manifest.fingerprint, manifest.clip_index) == ("render_clip", "f1", 0)
    assert manifest.producer == producer()
    assert manifest.inputs == {"speech": SPEECH}
    assert manifest.facts == FACTS
    assert manifest.outputs["clip"].key == LAYOUT.clip(0)
    assert manifest.started_at <= manifest.finished_at


def test_the_same_fingerprint_is_reused(store: ObjectStore) -> None:
    """A second run with the same fingerprint builds nothing and gives the same manifest."""
    first = produce(store, "f1", clip_build(b"1"))
    assert produce(store, "f1", not_built) == Produced(first.manifest, reused=True)


@pytest.mark.parametrize("error", [TransientError("away"), PermanentError("no right"), KeyboardInterrupt()])
def test_outputs_that_could_not_be_stored_are_kept(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """Outputs that could not be stored stay on the local disk; the next attempt stores them without a new build."""
    artifacts = ArtifactStore(store, tmp_path)
    work = Work(RENDER_CLIP, "job-1", LAYOUT.clip_manifest(0), "f1", {"speech": SPEECH}, clip_index=0)
    begun: list[int] = []

    def fail(*_: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(ObjectStore, "upload", fail)
        with pytest.raises(type(error)):
            artifacts.produce(work, clip_build(b"1"), begin=lambda: begun.append(1))
    assert artifacts.kept.has("job-1", "f1")
    manifest, reused = artifacts.produce(work, not_built, begin=lambda: begun.append(2))
    assert (reused, begun, manifest.facts) == (True, [1, 2], FACTS)
    assert store.get_bytes(LAYOUT.clip(0)) == b"1clip"
    assert not artifacts.kept.has("job-1", "f1")
    assert [path.name[:9] for path in tmp_path.iterdir()] == ["s2v-kept-"]


def test_kept_outputs_belong_to_one_job(store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs kept for one job are not used for another, although two jobs of one request have equal fingerprints."""
    artifacts = ArtifactStore(store, tmp_path)

    def build_for(layout: JobLayout) -> Build:
        def build(folder: Path) -> Built:
            (folder / "muxed.mp4").write_bytes(b"frames")
            return Built({"muxed": OutputFile(folder / "muxed.mp4", layout.muxed, "video/mp4")}, AssemblyFacts())

        return build

    def fail(*_: object) -> None:
        raise TransientError("away")

    with monkeypatch.context() as patch:
        patch.setattr(ObjectStore, "upload", fail)
        with pytest.raises(TransientError):
            artifacts.produce(Work(MUX_AUDIO, "job-1", LAYOUT.mux_manifest, "f1", {}), build_for(LAYOUT))
    other = JobLayout("job-2")
    produced = artifacts.produce(Work(MUX_AUDIO, "job-2", other.mux_manifest, "f1", {}), build_for(other))
    assert produced.manifest.outputs["muxed"].key == other.muxed
    assert not store.exists(LAYOUT.muxed)


def test_a_build_that_fails_leaves_nothing(store: ObjectStore, tmp_path: Path) -> None:
    """A build that fails stores neither outputs nor a manifest."""
    with pytest.raises(AssertionError, match="nothing was to be built"):
        ArtifactStore(store, tmp_path).produce(Work(STITCH, "job-1", "m", "f1", {}), not_built)
    assert list(tmp_path.iterdir()) == []


def _delete_motion(store: ObjectStore) -> None:
    store.delete(LAYOUT.motion(0))


def _change_motion(store: ObjectStore) -> None:
    store.put_bytes(LAYOUT.motion(0), b"2motion", "application/octet-stream")


def _garble_manifest(store: ObjectStore) -> None:
    store.put_bytes(LAYOUT.clip_manifest(0), b'{"step": "rend', "application/json")


@pytest.mark.parametrize("damage", [_delete_motion, _change_motion, _garble_manifest])
def test_incomplete_outputs_are_made_again(store: ObjectStore, damage: Callable[[ObjectStore], None]) -> None:
    """A lost output, an output with other bytes and a manifest that is not JSON each lead to a new build."""
    produce(store, "f1", clip_build(b"1"))
    damage(store)
    assert not produce(store, "f1", clip_build(b"1")).reused
    assert produce(store, "f1", not_built).reused
    assert store.get_bytes(LAYOUT.motion(0)) == b"1motion"


def test_a_build_that_fails_changes_nothing(store: ObjectStore) -> None:
    """After a build that fails, the earlier outputs are still complete and are reused."""
    produce(store, "f1", clip_build(b"1"))
    with pytest.raises(AssertionError):
        produce(store, "f2", not_built)
    assert produce(store, "f1", not_built).reused


def test_a_superseded_clip_is_kept(store: ObjectStore) -> None:
    """A replaced clip is kept under its superseded keys, with a manifest that names them."""
    produce(store, "f1", clip_build(b"1"))
    produce(store, "f2", clip_build(b"2"))
    kept = ArtifactStore(store).reusable(LAYOUT.superseded_clip(0, "f1", "manifest.json"), "f1")
    assert kept is not None
    assert kept.outputs["clip"].key == LAYOUT.superseded_clip(0, "f1", "clip.mp4")
    assert store.get_bytes(kept.outputs["clip"].key) == b"1clip"
    assert store.get_bytes(LAYOUT.clip(0)) == b"2clip"


def test_a_superseded_clip_is_restored_and_not_rendered_again(store: ObjectStore) -> None:
    """Returning to earlier inputs restores the earlier clip by copies; the clip that it replaces is kept, too."""
    produce(store, "f1", clip_build(b"1"))
    produce(store, "f2", clip_build(b"2"))
    for fingerprint, content in (("f1", b"1clip"), ("f2", b"2clip")):
        manifest, reused = produce(store, fingerprint, not_built)
        assert reused
        assert manifest.outputs["clip"].key == LAYOUT.clip(0)
        assert store.get_bytes(LAYOUT.clip(0)) == content


def test_artifacts_of_another_job_become_its_own(store: ObjectStore) -> None:
    """Artifacts of another job are copied with equal bytes; the copy outlives the original and names its first job."""
    made, artifacts = produce(store, "f1", clip_build(b"1")).manifest, ArtifactStore(store)
    second, third = JobLayout("job-2"), JobLayout("job-3")
    copy = artifacts.adopt(made, "job-2", second.clip_manifest(0))
    for key in (LAYOUT.clip(0), LAYOUT.motion(0), LAYOUT.clip_manifest(0)):
        store.delete(key)
    assert artifacts.reusable(second.clip_manifest(0), "f1") == copy
    assert (copy.job_id, copy.outputs["clip"].key) == ("job-2", second.clip(0))
    assert store.get_bytes(second.clip(0)) == b"1clip"
    assert artifacts.adopt(made, "job-2", second.clip_manifest(0)) == copy
    assert artifacts.adopt(copy, "job-3", third.clip_manifest(0)).facts.source_job_id == "job-1"
    with pytest.raises(PermanentError, match="of job job-1 are lost or changed"):
        artifacts.adopt(made, "job-4", JobLayout("job-4").clip_manifest(0))


def test_outputs_that_are_replaced_while_they_are_copied_are_not_adopted(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the other job renders its clip again meanwhile, the copy of mixed files gets no manifest."""
    made, second = produce(store, "f1", clip_build(b"1")).manifest, JobLayout("job-2").clip_manifest(0)
    copy = ObjectStore.copy

    def late(*arguments: str, **named: int) -> None:
        monkeypatch.setattr(ObjectStore, "copy", copy)
        produce(store, "f2", clip_build(b"2"))
        copy(*arguments, **named)

    monkeypatch.setattr(ObjectStore, "copy", late)
    with pytest.raises(TransientError, match="were replaced while they were copied to jobs/job-2/clips/0000/"):
        ArtifactStore(store).adopt(made, "job-2", second)
    assert not store.exists(second)


def test_the_same_work_of_another_job_is_copied(store: ObjectStore) -> None:
    """Outputs of another job are copied if they are complete and have the same inputs; otherwise the step runs."""
    second = JobLayout("job-2")
    theirs = {"job_id": "job-2", "manifest_key": second.clip_manifest(0), "clip_index": None}
    theirs["elsewhere"] = [LAYOUT.motion(1), LAYOUT.clip_manifest(0)]
    produce(store, "f1", clip_build(b"1"), clip_index=None)
    copy = produce(store, "f1", not_built, **theirs)
    assert copy.reused
    assert (copy.manifest.job_id, copy.manifest.facts.source_job_id) == ("job-2", "job-1")
    assert store.get_bytes(second.clip(0)) == b"1clip"
    _delete_motion(store)
    assert produce(store, "f1", not_built, **theirs).manifest == copy.manifest
    store.delete(second.clip_manifest(0))
    assert not produce(store, "f1", clip_build(b"1"), **theirs).reused
    assert not produce(store, "f2", clip_build(b"2"), **theirs).reused


def test_the_result_is_withdrawn_before_outputs_are_restored_or_copied(store: ObjectStore) -> None:
    """`begin` is called while the old manifest exists, for restored and for copied outputs; not for a reuse."""
    artifacts, began = ArtifactStore(store), []

    def begin() -> None:
        found = artifacts.read_manifest(LAYOUT.clip_manifest(0))
        began.append(found.fingerprint if found else None)

    work = Work(RENDER_CLIP, "job-1", LAYOUT.clip_manifest(0), "f1", {"speech": SPEECH}, clip_index=0)
    produce(store, "f1", clip_build(b"1"))
    assert artifacts.produce(work, not_built, begin=begin).reused
    assert began == []
    produce(store, "f2", clip_build(b"2"))
    assert artifacts.produce(work, not_built, begin=begin).reused
    assert began == ["f2"]
    second = JobLayout("job-2").clip_manifest(0)
    copied = Work(RENDER_CLIP, "job-2", second, "f1", {"speech": SPEECH}, elsewhere=[LAYOUT.clip_manifest(0)])
    assert artifacts.produce(copied, not_built, begin=lambda: began.append(str(store.exists(second)))).reused
    made = artifacts.read_manifest(LAYOUT.clip_manifest(0))
    assert made is not None
    artifacts.adopt(made, "job-2", second, begin=begin)
    third = JobLayout("job-3").clip_manifest(0)
    artifacts.adopt(made, "job-3", third, begin=lambda: began.append(str(store.exists(third))))
    assert began == ["f2", "False", "False"]


def test_other_steps_keep_no_old_outputs(store: ObjectStore) -> None:
    """Outputs of steps other than rendering are overwritten, because they are cheap to make."""
    produce(store, "f1", clip_build(b"1"), clip_index=None)
    produce(store, "f2", clip_build(b"2"), clip_index=None)
    assert not produce(store, "f1", clip_build(b"1"), clip_index=None).reused
