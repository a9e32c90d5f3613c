"""End a process when its parent ends, also when the parent is killed (PR_SET_PDEATHSIG)."""

import ctypes
import os
import signal
import subprocess
import sys
from functools import cache

_PR_SET_PDEATHSIG = 1
# Loaded before any fork: nothing may be imported between fork and exec.
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def end_with_parent(sent: signal.Signals, parent_pid: int | None = None) -> None:
    """Send the signal `sent` to this process when the thread that started it ends. Do nothing outside Linux.

    It can be called between fork and exec (`preexec_fn`) with the `parent_pid`, to notice a parent that ended before.
    """
    if _libc is None:
        return
    _libc.prctl(_PR_SET_PDEATHSIG, int(sent), 0, 0, 0)
    if parent_pid is not None and os.getppid() != parent_pid:
        os.kill(os.getpid(), sent)


def ending_with_parent(command: list[str], sent: signal.Signals) -> list[str]:
    """Return `command` as an argument of `setpriv`: it gets the signal `sent` when the thread that starts it ends.

    Such a command starts in 3 ms. With a `preexec_fn` Python has to fork, which copies the page tables of the process:
    50 ms per GB. A parent that ends before `setpriv` has run is not noticed. Return `command` where util-linux is
    absent or older than 2.33.
    """
    setpriv = ["setpriv", "--pdeathsig", sent.name.removeprefix("SIG"), "--"]
    return [*setpriv, *command] if _can_run((*setpriv, "true")) else command


@cache
def _can_run(command: tuple[str, ...]) -> bool:
    try:
        return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False).returncode == 0
    except OSError:
        return False
