"""Delete scratch folders at the end of their process, also if it is killed."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from s2v_tasks.scratch import scratch_folder

_HOLDER = """
import sys, time
from pathlib import Path
from s2v_tasks.scratch import scratch_folder

with scratch_folder(Path(sys.argv[1]), "job-1") as folder:
    (folder / "frames.bin").write_bytes(bytes(1000))
    print(folder, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path: Path):
    """Start a process that has a scratch folder with a file."""
    process = subprocess.Popen([sys.executable, "-c", _HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    yield process, Path(process.stdout.readline().strip())
    process.kill()
    process.communicate()


def test_the_folder_of_a_killed_process_is_deleted_by_the_next_one(
    tmp_path: Path, holder: tuple[subprocess.Popen[str], Path]
) -> None:
    """The folder of a running process stays; after SIGKILL the next process deletes it with its files."""
    process, left = holder
    with scratch_folder(tmp_path, "job-2"):
        assert (left / "frames.bin").is_file()
    process.kill()
    process.wait()
    assert (left / "frames.bin").is_file()
    with scratch_folder(tmp_path, "job-2") as folder:
        assert list(tmp_path.iterdir()) == [folder]
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_an_own_scratch_folder_stays(tmp_path: Path) -> None:
    """A link to another folder, a file, and a folder with another name are not deleted."""
    other = tmp_path / "other"
    other.mkdir()
    (other / "film.mp4").touch()
    (tmp_path / "s2v-scratch-link").symlink_to(other)
    (tmp_path / "s2v-scratch-file").touch()
    with scratch_folder(tmp_path, "job-1"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "s2v-scratch-file", "s2v-scratch-link"]
    assert (other / "film.mp4").is_file()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a folder of another account")
def test_the_folder_of_another_account_stays(tmp_path: Path) -> None:
    """Root does not delete the folders of an account whose processes may be in another container."""
    (tmp_path / "s2v-scratch-job-1-x").mkdir()
    os.chown(tmp_path / "s2v-scratch-job-1-x", 12345, 12345)
    with scratch_folder(tmp_path, "job-2"):
        pass
    assert (tmp_path / "s2v-scratch-job-1-x").is_dir()


@pytest.mark.parametrize("module", [tempfile, os], ids=["before it is opened", "before it is locked"])
def test_a_folder_that_another_process_deletes_before_it_is_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: Any
) -> None:
    """Another process takes a new folder for abandoned until it is locked; the caller gets the next one."""
    name = "mkdtemp" if module is tempfile else "open"
    call, seen = getattr(module, name), list[Path]()

    def then_deleted(*arguments: Any, **options: Any) -> Any:
        result = call(*arguments, **options)
        seen.append(Path(result if module is tempfile else arguments[0]))
        if len(seen) == 1:
            seen[0].rmdir()
        return result

    monkeypatch.setattr(module, name, then_deleted)
    with scratch_folder(tmp_path, "job-1") as folder:
        assert folder.is_dir()
        assert folder == seen[1] != seen[0]
