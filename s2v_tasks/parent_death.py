"""Processes that end with the one that started them, however that one ends."""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
# Loaded before any fork: nothing may be imported between fork and exec.
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def end_with_parent(sent: signal.Signals, parent_pid: int | None = None) -> None:
    """Let this process get the signal `sent` when the thread that started it ends. Linux only; nothing elsewhere.

    It can be called between fork and exec (`preexec_fn`); `parent_pid` then tells a parent that is gone already.
    """
    if _libc is None:
        return
    _libc.prctl(_PR_SET_PDEATHSIG, int(sent), 0, 0, 0)
    if parent_pid is not None and os.getppid() != parent_pid:
        os.kill(os.getpid(), sent)
