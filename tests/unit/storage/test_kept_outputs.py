"""Check outputs that are kept on the local disk until they can be stored."""

import os
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from s2v_tasks.schemas.manifest import ClipFacts
from s2v_tasks.storage import kept_outputs
from s2v_tasks.storage.kept_outputs import Built, KeptOutputs, OutputFile

FACTS = ClipFacts(start_frame=0, end_frame=48, render_seconds=51.5, device="cpu")


def make(folder: Path, content: bytes = b"frames") -> Built:
    """Make two outputs, one of them in a subfolder."""
    (folder / "sub").mkdir(parents=True)
    outputs = {}
    for name, path in (("clip", folder / "clip.mp4"), ("motion", folder / "sub" / "clip.mp4")):
        path.write_bytes(content + name.encode())
        outputs[name] = OutputFile(path, f"jobs/j/{name}", f"video/{name}")
    return Built(outputs, facts=FACTS)


@pytest.fixture
def kept(tmp_path: Path) -> KeptOutputs:
    return KeptOutputs(tmp_path / "work")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return the folder with the outputs of this account."""
    return tmp_path / "work" / f"s2v-kept-{os.getuid()}"


def test_kept_outputs_are_found_once(kept: KeptOutputs, tmp_path: Path) -> None:
    """Files, places and facts are returned for their fingerprint only, and to one caller only."""
    kept.put("job-1", "f1", make(tmp_path / "scratch"))
    assert (kept.has("job-1", "f1"), kept.has("job-1", "f2")) == (True, False)
    assert kept.take("job-1", "f2", tmp_path) is None
    taken = kept.take("job-1", "f1", tmp_path)
    assert taken is not None
    assert taken.facts.model_dump() == FACTS.model_dump()
    described = {name: (file.key, file.content_type) for name, file in taken.outputs.items()}
    assert described == {"clip": ("jobs/j/clip", "video/clip"), "motion": ("jobs/j/motion", "video/motion")}
    assert [taken.outputs[name].path.read_bytes() for name in ("clip", "motion")] == [b"framesclip", b"framesmotion"]
    assert not kept.has("job-1", "f1")
    (tmp_path / "other").mkdir()
    assert kept.take("job-1", "f1", tmp_path / "other") is None


def test_the_same_outputs_of_two_jobs_are_kept_apart(kept: KeptOutputs, tmp_path: Path) -> None:
    """Two jobs with equal fingerprints have their own outputs."""
    kept.put("job-1", "f1", make(tmp_path / "scratch"))
    assert not kept.has("job-2", "f1")
    assert kept.take("job-2", "f1", tmp_path) is None
    assert kept.has("job-1", "f1")


def test_the_latest_takes_the_place_of_an_earlier_one(kept: KeptOutputs, tmp_path: Path, root: Path) -> None:
    """Outputs that are kept again replace the earlier ones."""
    for content in (b"1", b"2"):
        kept.put("job-1", "f1", make(tmp_path / content.decode(), content))
    taken = kept.take("job-1", "f1", tmp_path)
    assert taken is not None
    assert taken.outputs["clip"].path.read_bytes() == b"2clip"
    assert list(root.iterdir()) == []


def test_damaged_outputs_are_not_taken(kept: KeptOutputs, tmp_path: Path, root: Path) -> None:
    """Outputs with a missing or changed file are not returned."""
    kept.put("job-1", "f1", make(tmp_path / "scratch"))
    (root / "job-1.f1" / "motion").write_bytes(b"frame")
    assert kept.take("job-1", "f1", tmp_path) is None
    for number, name in enumerate(("motion", "built.json")):
        kept.put("job-1", "f1", make(tmp_path / str(number)))
        (root / "job-1.f1" / name).unlink()
        assert kept.take("job-1", "f1", tmp_path / str(number)) is None


def test_a_folder_that_others_may_write_to_is_not_used(kept: KeptOutputs, tmp_path: Path, root: Path) -> None:
    """A folder with write access for others, or a link, is neither read nor written."""
    kept.put("job-1", "f1", make(tmp_path / "scratch"))
    assert root.stat().st_mode & 0o777 == 0o700
    for mode in (0o720, 0o702):
        root.chmod(mode)
        assert not kept.has("job-1", "f1")
        assert kept.take("job-1", "f1", tmp_path) is None
    root.chmod(0o700)
    root.rename(tmp_path / "elsewhere")
    root.symlink_to(tmp_path / "elsewhere")
    assert not kept.has("job-1", "f1")
    with capture_logs() as logs:
        kept.put("job-1", "f2", make(tmp_path / "more"))
    assert logs[-1]["event"] == "outputs_not_kept"
    assert not (tmp_path / "elsewhere" / "job-1.f2").exists()


def test_a_folder_of_another_account_is_not_used(
    kept: KeptOutputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a shared folder, the outputs of another account are not used."""
    kept.put("job-1", "f1", make(tmp_path / "scratch"))
    monkeypatch.setattr("os.getuid", lambda: 12345)
    assert not kept.has("job-1", "f1")


def test_unused_outputs_are_deleted_after_a_week(kept: KeptOutputs, tmp_path: Path, root: Path) -> None:
    """Outputs of a job that is never started again are deleted."""
    kept.put("job-1", "older", make(tmp_path / "1"))
    kept.put("job-1", "newer", make(tmp_path / "2"))
    for name, days in (("older", 7.1), ("newer", 6.9)):
        at = root.stat().st_mtime - days * 86400
        os.utime(root / f"job-1.{name}", (at, at))
    kept.put("job-1", "newest", make(tmp_path / "3"))
    assert sorted(path.name for path in root.iterdir()) == ["job-1.newer", "job-1.newest"]


def test_entries_that_disappear_are_ignored(kept: KeptOutputs, tmp_path: Path, root: Path) -> None:
    """An entry that another process removes meanwhile is no error."""
    kept.put("job-1", "f1", make(tmp_path / "1"))
    (root / "job-2.f2").symlink_to(tmp_path / "nowhere")
    kept.put("job-1", "f3", make(tmp_path / "2"))
    assert kept.has("job-1", "f3")


def test_a_full_disk_loses_kept_outputs_only(
    kept: KeptOutputs, tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If outputs cannot be kept, the log says so, no partial file stays, and no error is raised."""

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(kept_outputs.shutil, "move", full)
    with capture_logs() as logs:
        kept.put("job-1", "f1", make(tmp_path / "scratch"))
    assert (logs[-1]["event"], logs[-1]["error"]) == ("outputs_not_kept", "[Errno 28] No space left on device")
    assert list(root.iterdir()) == []


def test_without_a_work_dir_outputs_are_kept_in_the_temporary_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without S2V_WORK_DIR, outputs are kept below the temporary folder of the system."""
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    KeptOutputs(None).put("job-1", "f1", make(tmp_path / "scratch"))
    assert (tmp_path / f"s2v-kept-{os.getuid()}" / "job-1.f1" / "clip").is_file()
