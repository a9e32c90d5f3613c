"""Make for S3: what is whole is reused, what is not is made again, and no manifest ever lies."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import s2v_tasks
from s2v_tasks.errors import PermanentError, TransientError
from s2v_tasks.schemas.facts import ClipFacts
from s2v_tasks.schemas.manifest import Artifact
from s2v_tasks.schemas.steps import MUX_AUDIO, RENDER_CLIP, STITCH
from s2v_tasks.settings import load_settings
from s2v_tasks.storage.artifacts import ArtifactStore, Build, Built, OutputFile, Produced, Work, producer
from s2v_tasks.storage.layout import JobLayout
from s2v_tasks.storage.s3 import ObjectStore

FACTS = ClipFacts(start_frame=0, end_frame=48)
LAYOUT = JobLayout("job-1")
SPEECH = Artifact(key="jobs/job-1/inputs/audio.wav", sha256="0" * 64, size_bytes=1)


def clip_build(content: bytes) -> Build:
    """A build of two outputs."""

    def build(folder: Path) -> Built:
        outputs = {}
        for name, key in (("clip", LAYOUT.clip(0)), ("motion", LAYOUT.motion(0))):
            (folder / name).write_bytes(content + name.encode())
            outputs[name] = OutputFile(folder / name, key, "application/octet-stream")
        return Built(outputs, facts=FACTS)

    return build


def not_built(folder: Path) -> Built:
    raise AssertionError("nothing was to be built")


def produce(store: ObjectStore, fingerprint: str, build: Build, **changes: Any) -> Produced:
    arguments: dict[str, Any] = {
        "step": RENDER_CLIP,
        "job_id": "job-1",
        "manifest_key": LAYOUT.clip_manifest(0),
        "inputs": {"speech": SPEECH},
        "clip_index": 0,
    }
    return ArtifactStore(store).produce(Work(fingerprint=fingerprint, **(arguments | changes)), build)


def test_a_manifest_tells_what_was_made_from_what(store: ObjectStore) -> None:
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
def test_what_cannot_be_stored_is_stored_by_the_next_attempt(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """The outputs stay on the local disk, whatever kept them from the store; nothing is built again."""
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


def test_what_one_job_could_not_store_is_not_stored_for_another(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two jobs of one request have equal fingerprints: the manifest of each names objects of its own."""
    artifacts = ArtifactStore(store, tmp_path)

    def build_for(layout: JobLayout) -> Build:
        def build(folder: Path) -> Built:
            (folder / "muxed.mp4").write_bytes(b"frames")
            return Built({"muxed": OutputFile(folder / "muxed.mp4", layout.muxed, "video/mp4")})

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
    """Only what is finished is kept."""
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
def test_what_is_not_whole_is_made_again(store: ObjectStore, damage: Callable[[ObjectStore], None]) -> None:
    """A lost output, an output of other bytes and a manifest that is not JSON each lead to a new build."""
    produce(store, "f1", clip_build(b"1"))
    damage(store)
    assert not produce(store, "f1", clip_build(b"1")).reused
    assert produce(store, "f1", not_built).reused
    assert store.get_bytes(LAYOUT.motion(0)) == b"1motion"


def test_a_build_that_fails_changes_nothing(store: ObjectStore) -> None:
    """The outputs of before are still there, whole, and still reused."""
    produce(store, "f1", clip_build(b"1"))
    with pytest.raises(AssertionError):
        produce(store, "f2", not_built)
    assert produce(store, "f1", not_built).reused


def test_a_clip_that_gives_way_is_kept(store: ObjectStore) -> None:
    """The clip of before lies under its superseded keys with a manifest that names them."""
    produce(store, "f1", clip_build(b"1"))
    produce(store, "f2", clip_build(b"2"))
    kept = ArtifactStore(store).reusable(LAYOUT.superseded_clip(0, "f1", "manifest.json"), "f1")
    assert kept is not None
    assert kept.outputs["clip"].key == LAYOUT.superseded_clip(0, "f1", "clip.mp4")
    assert store.get_bytes(kept.outputs["clip"].key) == b"1clip"
    assert store.get_bytes(LAYOUT.clip(0)) == b"2clip"


def test_a_superseded_clip_is_put_back_and_not_rendered_again(store: ObjectStore) -> None:
    """Going back to earlier inputs costs two copies; the clip in between is kept, too."""
    produce(store, "f1", clip_build(b"1"))
    produce(store, "f2", clip_build(b"2"))
    for fingerprint, content in (("f1", b"1clip"), ("f2", b"2clip")):
        manifest, reused = produce(store, fingerprint, not_built)
        assert reused
        assert manifest.outputs["clip"].key == LAYOUT.clip(0)
        assert store.get_bytes(LAYOUT.clip(0)) == content


def test_artifacts_of_another_job_become_its_own(store: ObjectStore) -> None:
    """They are copies of the same bytes, which outlive the original; the first maker stays named."""
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


def test_the_same_work_of_another_job_is_copied(store: ObjectStore) -> None:
    """It is copied if its outputs are complete and have the same inputs; else the work is done again."""
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


def test_other_steps_keep_no_old_outputs(store: ObjectStore) -> None:
    """Outputs that are cheap to make are overwritten."""
    produce(store, "f1", clip_build(b"1"), clip_index=None)
    produce(store, "f2", clip_build(b"2"), clip_index=None)
    assert not produce(store, "f1", clip_build(b"1"), clip_index=None).reused


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it."""


class MortalStore(ObjectStore):
    """A store whose process dies before its n-th write."""

    writes_left = 10**9

    def _count(self) -> None:
        if self.writes_left == 0:
            raise Killed
        self.writes_left -= 1

    def put_bytes(self, *arguments: Any) -> Artifact:
        self._count()
        return super().put_bytes(*arguments)

    def upload(self, *arguments: Any) -> Artifact:
        self._count()
        return super().upload(*arguments)

    def copy(self, *arguments: Any) -> None:
        self._count()
        super().copy(*arguments)

    def delete(self, *arguments: Any) -> None:
        self._count()
        super().delete(*arguments)


@pytest.mark.parametrize("back", [False, True], ids=["new clip", "superseded clip"])
def test_a_kill_before_any_write_leaves_no_manifest_that_lies(object_store: ObjectStore, back: bool) -> None:
    """Whenever a clip that takes another's place is interrupted, the next run gives exactly the wanted clip."""
    store = MortalStore(
        f"s3://{object_store.bucket}/{object_store.prefix}",
        endpoint_url=object_store._server.endpoint_url,
        access_key_id="test",
        secret_access_key="test-secret",
    )
    wanted, current = (b"1", b"2") if back else (b"3", b"2")
    survived, num_writes = False, 0
    while not survived:
        store.writes_left = 10**9
        for content in (b"1", b"2"):
            produce(store, content.decode(), clip_build(content))
        if not back:
            store.delete(LAYOUT.superseded_clip(0, "3", "manifest.json"))
        store.writes_left = num_writes
        try:
            produce(store, wanted.decode(), clip_build(wanted))
            survived = True
        except Killed:
            num_writes += 1
        store.writes_left = 10**9
        for content in (wanted, current):
            produce(store, content.decode(), clip_build(content))
            assert store.get_bytes(LAYOUT.clip(0)) == content + b"clip"
            assert store.get_bytes(LAYOUT.motion(0)) == content + b"motion"
    assert num_writes == 7


def test_the_scratch_folder_is_gone_afterwards(store: ObjectStore, tmp_path: Path) -> None:
    """A build gets a folder inside the configured scratch folder, and it is removed."""
    seen: list[Path] = []

    def build(folder: Path) -> Built:
        seen.append(folder)
        return clip_build(b"1")(folder)

    ArtifactStore(store, tmp_path / "work").produce(Work(RENDER_CLIP, "job-1", "m.json", "f", {}), build)
    assert seen[0].parent == tmp_path / "work"
    assert list((tmp_path / "work").iterdir()) == []


def test_fetching_verifies(store: ObjectStore, tmp_path: Path) -> None:
    """An artifact of a manifest is downloaded with the bytes that the manifest vouches for."""
    manifest = produce(store, "f1", clip_build(b"1")).manifest
    assert ArtifactStore(store).fetch(manifest.outputs["clip"], tmp_path / "clip").read_bytes() == b"1clip"


def damage(store: ObjectStore, key: str) -> None:
    """Change the bytes of an object behind the store's back: size and metadata stay."""
    place = {"Bucket": store.bucket, "Key": f"{store.prefix}/{key}"}
    metadata = store._client.head_object(**place)["Metadata"]
    store._client.put_object(**place, Body=b"X" + store.get_bytes(key)[1:], Metadata=metadata)


def test_damage_is_found_once_and_made_good(store: ObjectStore, tmp_path: Path) -> None:
    """Fetching damaged bytes fails and deletes them, so that the step that makes them does not reuse them."""
    clip = produce(store, "f1", clip_build(b"1")).manifest.outputs["clip"]
    damage(store, clip.key)
    assert produce(store, "f1", not_built).reused
    for problem in ("expected 5 bytes", "does not exist"):
        with pytest.raises(TransientError, match=f"{problem}.*Run the step that writes it again"):
            ArtifactStore(store).fetch(clip, tmp_path / "clip")
    assert not produce(store, "f1", clip_build(b"1")).reused
    assert ArtifactStore(store).fetch(clip, tmp_path / "clip").read_bytes() == b"1clip"


def test_a_damaged_clip_is_not_put_back_for_ever(store: ObjectStore, tmp_path: Path) -> None:
    """A clip that was damaged while it was superseded is put back once, found out, and then rendered anew."""
    produce(store, "f1", clip_build(b"1"))
    produce(store, "f2", clip_build(b"2"))
    damage(store, LAYOUT.superseded_clip(0, "f1", "clip.mp4"))
    clip = produce(store, "f1", not_built).manifest.outputs["clip"]
    with pytest.raises(TransientError, match="expected 5 bytes"):
        ArtifactStore(store).fetch(clip, tmp_path / "clip")
    assert not produce(store, "f1", clip_build(b"1")).reused
    produce(store, "f2", not_built)
    produce(store, "f1", not_built)
    assert ArtifactStore(store).fetch(clip, tmp_path / "clip").read_bytes() == b"1clip"


def test_an_object_that_was_replaced_is_left_alone(store: ObjectStore, tmp_path: Path) -> None:
    """A process with an old manifest does not delete a newer object."""
    old = produce(store, "f1", clip_build(b"1")).manifest.outputs["clip"]
    produce(store, "f2", clip_build(b"2"))
    with pytest.raises(TransientError, match="expected 5 bytes"):
        ArtifactStore(store).fetch(old, tmp_path / "clip")
    assert produce(store, "f2", not_built).reused


def test_the_producer_is_this_package() -> None:
    """The producer has the version of the package."""
    assert producer().package_version == s2v_tasks.__version__


def test_the_producer_names_revision_and_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """Git revision and image digest of the settings, which images and pods state, are in the manifests."""
    monkeypatch.setenv("S2V_GIT_REVISION", "0123abcd")
    monkeypatch.setenv("S2V_IMAGE_DIGEST", f"sha256:{64 * 'e'}")
    load_settings.cache_clear()
    producer.cache_clear()
    try:
        found = producer()
    finally:
        producer.cache_clear()
    assert (found.git_revision, found.image_digest) == ("0123abcd", f"sha256:{64 * 'e'}")
