"""Attempts at GPU work: wait for an earlier attempt, send heartbeats, record the outcome.

Heartbeats record the GPU-seconds so far: a process that is killed, perhaps with its node, cannot report them.
"""

import socket
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Self

from s2v_tasks import log
from s2v_tasks.errors import TransientError
from s2v_tasks.metadata.attempts import AttemptKey
from s2v_tasks.runtime.context import StepContext, tolerated
from s2v_tasks.schemas.job import AttemptOutcome
from s2v_tasks.schemas.manifest import ClipFacts
from s2v_tasks.schemas.quality import TakeRecord
from s2v_tasks.storage.artifacts import Build, Built, Produced, Work

BEAT_SECONDS = 5.0
_SILENT_SECONDS = 3 * BEAT_SECONDS  # without a heartbeat; then an attempt counts as dead
_LOOK_SECONDS = 1.0
# The other ranks wait meanwhile in a collective operation with a timeout of 30 minutes.
_LONGEST_WAIT_SECONDS = 15 * 60.0


@contextmanager
def heartbeats(ctx: StepContext, work: AttemptKey) -> Iterator[None]:
    """Record the GPU-seconds of the running attempt every few seconds."""
    over = threading.Event()

    def beat() -> None:
        while not over.wait(BEAT_SECONDS):
            with tolerated("heartbeat_not_recorded"):
                ctx.metadata.attempts.heartbeat(ctx.job_id, work)

    thread = threading.Thread(target=beat, name="heartbeats", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def await_earlier_attempt(ctx: StepContext, work: AttemptKey) -> None:
    """Wait while another process does the same work; TransientError if that takes too long.

    If a scheduler is lost, Airflow starts its task again and ends the first process some seconds later. The wait
    prevents that the work of the first process is done twice.
    """
    deadline = time.monotonic() + _LONGEST_WAIT_SECONDS
    waits = False
    while _is_alive(ctx, work):
        if ctx.retry_policy.asked_to_end():
            raise TransientError(
                "This process had to end while it waited for an earlier attempt at the same work. The next try "
                "waits again."
            )
        if time.monotonic() > deadline:
            raise TransientError(
                f"Another process has been busy with this work for {_LONGEST_WAIT_SECONDS / 60:.0f} minutes: expected "
                "it to end, because Airflow has started this process as its replacement. The next try waits again."
            )
        if not waits:
            log.get_logger().info("waiting_for_earlier_attempt")
            waits = True
        time.sleep(_LOOK_SECONDS)


def _is_alive(ctx: StepContext, work: AttemptKey) -> bool:
    """Return True if another process has sent a heartbeat recently.

    The time of an outage of the database does not count, because no heartbeat could be sent.
    """
    outage, silent_seconds = ctx.retry_policy.latest_outage, _SILENT_SECONDS
    if outage is not None:
        began, ended = outage
        now = time.monotonic()
        if now - ended < _SILENT_SECONDS:
            silent_seconds += now - began
    alive = ctx.metadata.attempts.is_alive(ctx.job_id, work, within_seconds=silent_seconds)
    return alive or ctx.retry_policy.latest_outage != outage  # there was an outage during this call: check again


class AttemptInterruptedError(TransientError):
    """A signal ended the process; the state of its work is saved."""


class Attempt(ABC):
    """One attempt at GPU work, recorded in the metadata store from its start to its end.

    Entering it waits for an earlier attempt at the same work. Heartbeats begin with the build and end with the block,
    because the GPU is held until the outputs are stored and recorded, also during an outage of S3.
    """

    def __init__(self, ctx: StepContext, work: Work) -> None:
        self.ctx, self.work = ctx, work
        self._key = AttemptKey(work.step.name, work.clip_index)
        self._node = ctx.settings.node or socket.gethostname()
        self._heartbeats = ExitStack()

    def __enter__(self) -> Self:
        await_earlier_attempt(self.ctx, self._key)
        return self

    def __exit__(self, *_: object) -> None:
        self._heartbeats.close()

    def produce(self, build: Build) -> Produced:
        """Reuse the outputs of the work or build them; a failure ends the attempt.

        If the next attempt can continue the work, the attempt counts as interrupted instead of failed.
        """

        def build_as_attempt(folder: Path) -> Built:
            self._key = self._key._replace(number=self._start())
            self._heartbeats.enter_context(heartbeats(self.ctx, self._key))
            return build(folder)

        try:
            return self.ctx.produce(self.work, build_as_attempt)
        except Exception as error:
            is_kept = isinstance(error, AttemptInterruptedError) or self.ctx.artifacts.kept.has(
                self.work.job_id, self.work.fingerprint
            )
            with tolerated("attempt_not_recorded"):
                self._fail(AttemptOutcome.INTERRUPTED if is_kept else AttemptOutcome.FAILED, str(error))
            raise

    @abstractmethod
    def succeed(self, produced: Produced) -> None:
        """Record the success; `produced.reused` outputs were made by an earlier attempt or by another job."""

    @abstractmethod
    def _start(self) -> int:
        """Record the start and return the number of the attempt."""

    @abstractmethod
    def _fail(self, outcome: AttemptOutcome, reason: str) -> None: ...


class ConditionsAttempt(Attempt):
    """An attempt to encode the conditions of a job."""

    def succeed(self, produced: Produced) -> None:
        """Record the success."""
        if produced.reused:
            self.ctx.metadata.conditions.reuse(self.work.job_id, made_at=produced.manifest.made_at)
        else:
            number = self._key.number
            self.ctx.metadata.conditions.end(self.work.job_id, outcome=AttemptOutcome.SUCCEEDED, number=number)

    def _start(self) -> int:
        return self.ctx.metadata.conditions.start(self.work.job_id, node=self._node)

    def _fail(self, outcome: AttemptOutcome, reason: str) -> None:
        number = self._key.number
        self.ctx.metadata.conditions.end(self.work.job_id, outcome=outcome, reason=reason, number=number)


class ClipAttempt(Attempt):
    """An attempt to render a clip on `world_size` GPUs."""

    def __init__(self, ctx: StepContext, work: Work, *, world_size: int) -> None:
        super().__init__(ctx, work)
        self._clip_index, self._world_size = work.clip_index or 0, world_size

    def succeed(self, produced: Produced, takes: TakeRecord | None = None) -> None:
        """Record the success and the facts of the clip. `takes`: its measured takes; `produced` is the kept one."""
        if takes is not None:
            self.ctx.metadata.clips.record_quality(self.work.job_id, takes)
        self.ctx.metadata.clips.succeed(
            self.work.job_id,
            self._clip_index,
            facts=produced.manifest.facts_as(ClipFacts),
            reused=produced.reused,
            made_at=produced.manifest.made_at,
            number=self._key.number,
        )

    def end_take(self, produced: Produced) -> None:
        """Record that a take is stored which is not kept."""
        self.ctx.metadata.clips.end_take(
            self.work.job_id,
            self._clip_index,
            produced.reused,
            made_at=produced.manifest.made_at,
            number=self._key.number,
        )

    def _start(self) -> int:
        return self.ctx.metadata.clips.start(
            self.work.job_id, self._clip_index, self.work.fingerprint, world_size=self._world_size, node=self._node
        )

    def _fail(self, outcome: AttemptOutcome, reason: str) -> None:
        number = self._key.number
        self.ctx.metadata.clips.fail(self.work.job_id, self._clip_index, reason, outcome=outcome, number=number)
