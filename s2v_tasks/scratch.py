"""Make scratch folders for temporary files, and delete those of processes that were killed."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PREFIX = "s2v-scratch-"


@contextmanager
def scratch_folder(work_dir: Path | None, name: str) -> Iterator[Path]:
    """Make a folder below `work_dir`, or in the folder of the system, that is deleted with all its files at the end.

    A killed process cannot delete its folder. Therefore each call also deletes the folders whose processes have ended:
    a process holds a lock on its folder, and the kernel releases the lock when the process ends.
    """
    root = work_dir or Path(tempfile.gettempdir())
    if work_dir:
        work_dir.mkdir(parents=True, exist_ok=True)
    for folder in root.glob(f"{_PREFIX}*"):
        _delete_abandoned(folder)
    folder, lock = _locked_folder(root, name)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _locked_folder(root: Path, name: str) -> tuple[Path, int]:
    """Return a new folder and the descriptor that holds its lock."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{name}-", dir=root))
        # FileNotFoundError: another process has deleted the folder before it was locked.
        with suppress(FileNotFoundError):
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            # OSError: a file system without locks, on which no process deletes the folder of another one.
            with suppress(OSError):
                fcntl.flock(lock, fcntl.LOCK_SH)
            if folder.is_dir():
                return folder, lock
            os.close(lock)


def _delete_abandoned(folder: Path) -> None:
    """Delete a folder of this account that no process has locked."""
    # OSError: another process uses or deletes the folder, or it belongs to another account.
    with suppress(OSError):
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            if os.fstat(lock).st_uid == os.geteuid():
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)
        finally:
            os.close(lock)
