"""Ends a rank that waits for one that is gone.

On a CPU an exchange with a dead rank fails at once. On a GPU it is only queued: the device waits for ever, and the host
goes on until the queue is full, where it hears neither signals nor other ranks. So a thread looks after the processes.
"""

import os
import threading
from collections.abc import Callable, Sequence

from s2v_tasks.errors import TransientError
from s2v_tasks.log import get_logger

POLL_SECONDS = 1.0
UNWIND_SECONDS = 10.0  # for a rank that has noticed by itself: it says what it lost and cleans up


class PeerWatch(threading.Thread):
    """Ends this process hard when one of `pids`, all on this machine, is gone while the ranks work `together`."""

    def __init__(self, pids: Sequence[int], together: Callable[[], bool]) -> None:
        super().__init__(name="peers", daemon=True)
        self._pids, self._together = pids, together
        self._closed = threading.Event()

    def close(self) -> None:
        """The ranks part: nothing is ended from here on."""
        self._closed.set()
        self.join()

    def run(self) -> None:
        """Look until the ranks part or one of them is gone."""
        while not self._closed.wait(POLL_SECONDS):
            gone = [rank for rank, pid in enumerate(self._pids) if not _runs(pid)]
            if gone and self._together() and not self._closed.wait(UNWIND_SECONDS) and self._together():
                get_logger().error(f"ranks {gone} are gone and this one still waits for them: it ends hard. Try again.")
                os._exit(TransientError.exit_code)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
