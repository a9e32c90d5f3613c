"""What was spent: every encoding and every rendering that was begun, whatever became of it."""

from datetime import datetime
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.orm import aliased

from s2v_tasks.metadata.session import transaction
from s2v_tasks.metadata.statements import NOW, storable
from s2v_tasks.metadata.tables import Attempt, Clip
from s2v_tasks.schemas.job import AttemptOutcome
from s2v_tasks.schemas.steps import ENCODE_CONDITIONS, RENDER_CLIP


class Work(NamedTuple):
    """What GPU time is paid for: a clip, or the conditions, which are those of all clips."""

    step: str
    clip_index: int | None


_UNENDED = (AttemptOutcome.RUNNING, AttemptOutcome.LOST)  # its end was not reported
CONDITIONS = Work(ENCODE_CONDITIONS.name, None)


def rendering(clip_index: int) -> Work:
    """The work on a clip."""
    return Work(RENDER_CLIP.name, clip_index)


class AttemptLedger:
    """What goes on; each call is one transaction."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def attempt_goes_on(self, job_id: str, work: Work) -> None:
        """A sign of life of the attempt that runs, if one does: its GPU-seconds so far."""
        running = (*_of(job_id, work), Attempt.outcome == AttemptOutcome.RUNNING)
        with transaction(self._engine) as connection:
            connection.execute(sa.update(Attempt).where(*running).values(gpu_seconds=_gpu_seconds(NOW)))

    def attempt_is_alive(self, job_id: str, work: Work, *, within_seconds: float) -> bool:
        """Whether an attempt runs that has given a sign of life within so many seconds."""
        recent = _last_sign() > NOW - sa.func.make_interval(0, 0, 0, 0, 0, 0, within_seconds)
        running = sa.select(Attempt.attempt).where(
            *_of(job_id, work), Attempt.outcome == AttemptOutcome.RUNNING, recent
        )
        with transaction(self._engine) as connection:
            return connection.execute(running.limit(1)).first() is not None


def begin_attempt(connection: sa.Connection, job_id: str, work: Work, world_size: int) -> int:
    """Put a new attempt on record and return its number, from 1. One that still runs is lost: it cannot end any more.

    The caller holds the lock of the job.
    """
    end_attempts(connection, job_id, work, outcome=AttemptOutcome.LOST, reason="Another attempt began.")
    attempt: int = connection.execute(sa.select(_latest(job_id, work))).scalar_one() + 1
    values = {**work._asdict(), "job_id": job_id, "attempt": attempt, "world_size": world_size}
    connection.execute(sa.insert(Attempt).values(**values))
    return attempt


def end_attempts(
    connection: sa.Connection,
    job_id: str,
    work: Work | None = None,
    *,
    outcome: AttemptOutcome,
    reason: str | None = None,
) -> None:
    """End what runs of a piece of work, or of the whole job, and count its GPU-seconds.

    A lost attempt counts until its last sign of life: its GPU-seconds so far, or the last progress of its clip.
    succeeded: the latest attempt, also where it was taken for lost: a clip of another chain may have failed the job
    meanwhile. One that had ended otherwise keeps its length: what it made was stored later.
    """
    progress = sa.select(Clip.updated_at).where(Clip.job_id == Attempt.job_id, Clip.clip_index == Attempt.clip_index)
    end: Any = sa.func.greatest(_last_sign(), progress.scalar_subquery()) if outcome == AttemptOutcome.LOST else NOW
    which = [Attempt.job_id == job_id] if work is None else _of(job_id, work)
    if work is not None and outcome == AttemptOutcome.SUCCEEDED:
        which.append(Attempt.attempt == _latest(job_id, work))
        end = sa.case((Attempt.outcome.in_(_UNENDED), end), else_=Attempt.finished_at)
    else:
        which.append(Attempt.outcome == AttemptOutcome.RUNNING)
    connection.execute(
        sa
        .update(Attempt)
        .where(*which)
        .values(
            outcome=outcome,
            finished_at=end,
            gpu_seconds=_gpu_seconds(end),
            reason=storable(reason),
        )
    )


def credit_attempt(connection: sa.Connection, job_id: str, work: Work, made_at: datetime) -> None:
    """Let the latest attempt have succeeded when it had begun at `made_at`, when the work that is reused was finished.

    The database was away, or the process was killed, before the end of the attempt was recorded: it ended at `made_at`.
    """
    ended = sa.func.greatest(sa.func.coalesce(Attempt.finished_at, _last_sign()), sa.func.least(made_at, NOW))
    end = sa.case((Attempt.outcome.in_(_UNENDED), ended), else_=Attempt.finished_at)
    which = (*_of(job_id, work), Attempt.attempt == _latest(job_id, work), Attempt.outcome != AttemptOutcome.SUCCEEDED)
    connection.execute(
        sa
        .update(Attempt)
        .where(*which, Attempt.started_at <= made_at)
        .values(outcome=AttemptOutcome.SUCCEEDED, reason=None, finished_at=end, gpu_seconds=_gpu_seconds(end))
    )


def _last_sign() -> Any:
    """When the attempt was last heard of: its beginning and its GPU-seconds so far."""
    so_far = sa.func.coalesce(Attempt.gpu_seconds, 0) / Attempt.world_size
    return Attempt.started_at + so_far * sa.text("interval '1 second'")


def _gpu_seconds(end: Any) -> Any:
    return sa.extract("epoch", end - Attempt.started_at) * Attempt.world_size


def _of(job_id: str, work: Work, attempts: Any = Attempt) -> list[sa.ColumnElement[bool]]:
    same_clip = attempts.clip_index.is_not_distinct_from(work.clip_index)
    return [attempts.job_id == job_id, attempts.step == work.step, same_clip]


def _latest(job_id: str, work: Work) -> sa.ScalarSelect[int]:
    """The number of the latest attempt, 0 where there was none."""
    others = aliased(Attempt)
    latest = sa.select(sa.func.coalesce(sa.func.max(others.attempt), 0)).where(*_of(job_id, work, others))
    return latest.scalar_subquery()
