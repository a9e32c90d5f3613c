"""Stop the services of a home folder when the process that uses them ends, also by SIGKILL.

A guard is a child of that process in a separate session. It waits until its parent changes. Unlike a signal at the
death of the parent, this depends on the process instead of a thread, and also works for servers of another account.
"""

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

import psutil

from s2v_tasks.embedded.process import write_private

_POLL_SECONDS = 0.5
_PREFIX = "s2v-home-"  # of temporary home folders
_OWNER = "owner"

# release: stop the services without users; down: also stop Airflow; remove: stop all services and delete the folder.
Ending = Literal["release", "down", "remove"]


@contextmanager
def guarded(home: Path, ending: Ending) -> Iterator[None]:
    """Start a guard, which does `ending` for a home folder if this process ends before the block."""
    command = [sys.executable, "-m", "s2v_tasks.embedded.guard", str(os.getpid()), ending, str(home)]
    guard = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        yield
    finally:
        guard.terminate()
        guard.wait()


@contextmanager
def temporary_home() -> Iterator[Path]:
    """Yield a home folder that every account can reach. At the end its services are stopped and it is deleted."""
    end_leftovers()
    home = Path(tempfile.mkdtemp(prefix=_PREFIX))
    home.chmod(0o755)  # as root, PostgreSQL runs as another account
    write_private(home / _OWNER, _identity(os.getpid()))
    with (home / _OWNER).open() as mark, guarded(home, "remove"):
        # The lock ends with this process. The identity alone is not enough: a change of the clock changes start times.
        fcntl.flock(mark, fcntl.LOCK_SH)
        try:
            yield home
        finally:
            _end(home, "remove")


def end_leftovers() -> None:
    """Stop the services in temporary home folders whose owner and guard were killed; delete the folders."""
    for mark in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*/{_OWNER}"):
        # FileNotFoundError: its guard deletes it; BlockingIOError: its owner runs
        with suppress(FileNotFoundError, BlockingIOError):
            if mark.parent.stat().st_uid == os.geteuid() and not _runs(mark.read_text(encoding="utf-8")):
                with mark.open() as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    _end(mark.parent, "remove")


def _end(home: Path, ending: Ending) -> None:
    from s2v_tasks.embedded.stack import Services, stop_all

    if ending != "remove":
        Services(home).release(with_airflow=ending == "down")
        return
    # A folder of tests has homes within homes.
    for place in sorted({home, *(state.parent.parent for state in home.rglob("server.json"))}):
        stop_all(place)
    shutil.rmtree(home, ignore_errors=True)


def _identity(pid: int) -> str:
    """Return a text that identifies a process until the machine is restarted."""
    return f"{pid} {psutil.Process(pid).create_time()}"


def _runs(identity: str) -> bool:
    pid = int(identity.partition(" ")[0])
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE and _identity(pid) == identity
    except psutil.NoSuchProcess:
        return False


def _watch(owner_pid: int, ending: Ending, home: Path) -> None:
    while os.getppid() == owner_pid:
        time.sleep(_POLL_SECONDS)
    _end(home, ending)


if __name__ == "__main__":
    _watch(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))  # type: ignore[arg-type]
