"""Build outputs in scratch folders, and log those that were lost."""

from pathlib import Path

from structlog.testing import capture_logs

from s2v_tasks.storage.artifacts import ArtifactStore
from s2v_tasks.storage.s3 import ObjectStore
from tests.contracts.artifact_builds import LAYOUT, clip_build, produce, work


def test_the_folder_for_scratch_is_made_with_its_parents(object_store: ObjectStore, tmp_path: Path) -> None:
    """Each piece of work leaves it empty, and the next one finds it."""
    folder = tmp_path / "new" / "scratch"
    artifacts = ArtifactStore(object_store, folder)
    for fingerprint in ("f1", "f2"):
        assert not artifacts.produce(work(fingerprint), clip_build(b"1")).reused
        assert list(folder.iterdir()) == []


def test_a_lost_output_is_logged_before_it_is_made_again(object_store: ObjectStore) -> None:
    """The log has its key; an output that is there is reused without a word."""
    produce(object_store, "f1", clip_build(b"1"))
    with capture_logs() as quiet:
        assert produce(object_store, "f1", clip_build(b"1")).reused
    object_store.delete(LAYOUT.motion(0))
    with capture_logs() as lines:
        assert not produce(object_store, "f1", clip_build(b"1")).reused
    lost = [(entry["event"], entry["key"]) for entry in lines if entry["event"] == "output_lost"]
    assert lost == [("output_lost", LAYOUT.motion(0))]
    assert "output_lost" not in [entry["event"] for entry in quiet]
