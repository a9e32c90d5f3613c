"""Writes down what an attempt has cost so far: one that is killed, with its node perhaps, cannot say so at its end."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from s2v_tasks.metadata.attempts import Work
from s2v_tasks.steps.context import StepContext, tolerated

BEAT_SECONDS = 5.0


@contextmanager
def metered(ctx: StepContext, work: Work) -> Iterator[None]:
    """Work on GPUs that began a moment ago; its seconds are on record as they go by, loading the model included."""
    over = threading.Event()

    def beat() -> None:
        while not over.wait(BEAT_SECONDS):
            with tolerated("attempt_not_metered"):
                ctx.ledger.attempt_goes_on(ctx.job_id, work)

    thread = threading.Thread(target=beat, name="attempt-meter", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
