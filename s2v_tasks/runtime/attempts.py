"""Writes down what an attempt has cost so far: one that is killed, with its node perhaps, cannot say so at its end."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from s2v_tasks import log
from s2v_tasks.errors import TransientError
from s2v_tasks.metadata.attempts import AttemptKey
from s2v_tasks.runtime.context import StepContext, tolerated

BEAT_SECONDS = 5.0
_SILENT_SECONDS = 3 * BEAT_SECONDS  # after that an attempt is taken for dead
_LOOK_SECONDS = 1.0
# The other ranks wait in a collective operation meanwhile, which ends after 30 minutes.
_LONGEST_WAIT_SECONDS = 15 * 60.0


@contextmanager
def metered(ctx: StepContext, work: AttemptKey) -> Iterator[None]:
    """Work on GPUs that began a moment ago; its seconds are on record as they go by, loading the model included."""
    over = threading.Event()

    def beat() -> None:
        while not over.wait(BEAT_SECONDS):
            with tolerated("attempt_not_metered"):
                ctx.metadata.attempts.heartbeat(ctx.job_id, work)

    thread = threading.Thread(target=beat, name="attempt-meter", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def await_earlier_attempt(ctx: StepContext, work: AttemptKey) -> None:
    """Wait while another process works on the same; TransientError when that takes too long.

    Airflow starts a task again when its scheduler was lost, and ends the process of the first try only some seconds
    later. What that process saves at its end, or even finishes, would else be computed twice.
    """
    deadline = time.monotonic() + _LONGEST_WAIT_SECONDS
    waits = False
    while _is_alive(ctx, work):
        if ctx.retry_policy.asked_to_end():
            raise TransientError(
                "This process was asked to end while it waited for an earlier one that works on the same: the next try "
                "looks again."
            )
        if time.monotonic() > deadline:
            raise TransientError(
                f"Another process has worked on this for {_LONGEST_WAIT_SECONDS / 60:.0f} minutes: expected that it "
                "ends, since Airflow has started this one in its place. The next try looks again."
            )
        if not waits:
            log.get_logger().info("waiting_for_earlier_attempt")
            waits = True
        time.sleep(_LOOK_SECONDS)


def _is_alive(ctx: StepContext, work: AttemptKey) -> bool:
    """Whether another process works on the same, as far as one can tell after an outage.

    While the database was away it could not give a sign of life: that silence does not count.
    """
    outage, silent_seconds = ctx.retry_policy.latest_outage, _SILENT_SECONDS
    if outage is not None:
        began, ended = outage
        now = time.monotonic()
        if now - ended < _SILENT_SECONDS:
            silent_seconds += now - began
    alive = ctx.metadata.attempts.is_alive(ctx.job_id, work, within_seconds=silent_seconds)
    return alive or ctx.retry_policy.latest_outage != outage  # this look has outlasted one: look again
