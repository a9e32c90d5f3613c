"""Stop a step when its job is cancelled: each process of the step polls the metadata store.

A cancellation therefore reaches every process without Airflow or Kubernetes.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from s2v_tasks import log
from s2v_tasks.errors import JobCancelledError, S2VError
from s2v_tasks.metadata.store import MetadataStore
from s2v_tasks.settings import Settings

POLL_SECONDS = 1.0
UNWIND_SECONDS = 3.0  # a process that waits for a GPU or another rank may not handle a signal earlier


class _Cancelled(BaseException):
    """Interrupt the work; as a BaseException it is not caught by error handlers."""


@contextmanager
def cancellable(job_id: str, settings: Settings) -> Iterator[None]:
    """Raise JobCancelledError in the block within seconds of `s2v cancel`; in the main thread only.

    The block is unwound, so that scratch files and child processes are removed. A process that does not unwind in time
    exits at once.
    """
    watch = _Watch(job_id, settings)
    previous = signal.signal(signal.SIGUSR1, watch.on_signal)
    watch.start()
    try:
        try:
            yield
        finally:
            watch.close()
    except _Cancelled:
        raise _error(job_id) from None
    except Exception as error:
        if watch.cancelled:  # another rank or the signal of Airflow came first
            raise _error(job_id) from error
        raise
    finally:
        signal.signal(signal.SIGUSR1, previous)


def refuse_cancelled(metadata: MetadataStore, job_id: str) -> None:
    """Raise JobCancelledError if the job was cancelled and not started again."""
    if metadata.jobs.is_cancel_requested(job_id):
        raise _error(job_id)


def _error(job_id: str) -> JobCancelledError:
    return JobCancelledError(
        f"Job {job_id} was cancelled. Its finished clips are kept: to continue, submit it again or clear its run."
    )


class _Watch(threading.Thread):
    """Thread that polls the metadata store on its own connection, and interrupts the main thread."""

    def __init__(self, job_id: str, settings: Settings) -> None:
        super().__init__(name="cancellation", daemon=True)
        self._job_id = job_id
        self._metadata = MetadataStore.from_settings(settings)
        self._closed = threading.Event()
        self.cancelled = False

    def on_signal(self, _signal: int, _frame: Any) -> None:
        """Interrupt the main thread, which handles the signal."""
        if not self._closed.is_set():
            raise _Cancelled

    def close(self) -> None:
        """Stop polling, so that the work is no longer interrupted."""
        self._closed.set()
        self.join()
        self._metadata.close()

    def run(self) -> None:
        """Poll until the work is over or the job is cancelled."""
        while not self._closed.wait(POLL_SECONDS):
            try:
                self.cancelled = self._metadata.jobs.is_cancel_requested(self._job_id)
            except S2VError as error:
                log.get_logger().warning("cancel_not_known", error=str(error))
            if self.cancelled:
                log.get_logger().warning("job_cancelled")
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
                if not self._closed.wait(UNWIND_SECONDS):
                    log.get_logger().error(str(_error(self._job_id)), ended="hard")
                    os._exit(JobCancelledError.exit_code)
                return
