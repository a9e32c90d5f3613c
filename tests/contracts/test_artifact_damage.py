"""Check that artifacts that are incomplete, lost or damaged are detected and made again."""

from pathlib import Path
from typing import Any

import pytest

from s2v_tasks.errors import TransientError
from s2v_tasks.schemas.manifest import Artifact
from s2v_tasks.schemas.steps import RENDER_CLIP
from s2v_tasks.storage.artifacts import ArtifactStore, Built, Work
from s2v_tasks.storage.s3 import ObjectStore
from tests.contracts.artifact_builds import LAYOUT, clip_build, not_built, produce


class Killed(BaseException):
    """Takes the place of SIGKILL: no handler of errors catches it."""


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
def test_a_kill_before_any_write_leaves_no_wrong_manifest(object_store: ObjectStore, back: bool) -> None:
    """If the replacement of a clip is interrupted at any write, the next run stores exactly the requested clip."""
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
    """A build gets a folder inside the configured scratch folder, and that folder is removed afterwards."""
    seen: list[Path] = []

    def build(folder: Path) -> Built:
        seen.append(folder)
        return clip_build(b"1")(folder)

    ArtifactStore(store, tmp_path / "work").produce(Work(RENDER_CLIP, "job-1", "m.json", "f", {}), build)
    assert seen[0].parent == tmp_path / "work"
    assert list((tmp_path / "work").iterdir()) == []


def test_fetching_verifies(store: ObjectStore, tmp_path: Path) -> None:
    """A fetched artifact has the SHA-256 that its manifest states."""
    manifest = produce(store, "f1", clip_build(b"1")).manifest
    assert ArtifactStore(store).fetch(manifest.outputs["clip"], tmp_path / "clip").read_bytes() == b"1clip"


def damage(store: ObjectStore, key: str) -> None:
    """Change the bytes of an object directly in the store; its size and its metadata stay the same."""
    place = {"Bucket": store.bucket, "Key": f"{store.prefix}/{key}"}
    metadata = store._client.head_object(**place)["Metadata"]
    store._client.put_object(**place, Body=b"X" + store.get_bytes(key)[1:], Metadata=metadata)


def test_damaged_bytes_are_deleted_and_made_again(store: ObjectStore, tmp_path: Path) -> None:
    """Fetching damaged bytes fails and deletes them, so that the step does not reuse them."""
    clip = produce(store, "f1", clip_build(b"1")).manifest.outputs["clip"]
    damage(store, clip.key)
    assert produce(store, "f1", not_built).reused
    for problem in ("expected 5 bytes", "does not exist"):
        with pytest.raises(TransientError, match=f"{problem}.*Run the step that writes it again"):
            ArtifactStore(store).fetch(clip, tmp_path / "clip")
    assert not produce(store, "f1", clip_build(b"1")).reused
    assert ArtifactStore(store).fetch(clip, tmp_path / "clip").read_bytes() == b"1clip"


def test_a_damaged_superseded_clip_is_rendered_again(store: ObjectStore, tmp_path: Path) -> None:
    """A clip that was damaged while it was superseded is restored once, found damaged, and then rendered again."""
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


def _forget_digest(store: ObjectStore, key: str, content: bytes) -> None:
    """Write an object as a restore from files does: without the metadata."""
    at = store.uri(key).removeprefix(f"s3://{store.bucket}/")
    store._client.put_object(Bucket=store.bucket, Key=at, Body=content)


def test_an_output_without_its_metadata_is_read_and_reused(store: ObjectStore) -> None:
    """An output whose metadata were lost is reused if its bytes have the digest of the manifest, else made again."""
    produce(store, "f1", clip_build(b"1"))
    _forget_digest(store, LAYOUT.motion(0), b"1motion")
    assert produce(store, "f1", not_built).reused
    _forget_digest(store, LAYOUT.motion(0), b"2motion")
    assert not produce(store, "f1", clip_build(b"1")).reused
