"""End a process when its parent ends, also when the parent is killed (PR_SET_PDEATHSIG)."""

import ctypes
import os
import signal
import sys

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
