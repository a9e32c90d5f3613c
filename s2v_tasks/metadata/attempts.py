"""Attempts: every started encoding and rendering, with its GPU-seconds and outcome."""

from collections.abc import Collection
from datetime import datetime
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.orm import aliased

from s2v_tasks.metadata.sql import NOW, Repository, locked_job, storable
from s2v_tasks.metadata.tables import Attempt, Clip
from s2v_tasks.schemas.job import AttemptOutcome
from s2v_tasks.schemas.steps import ENCODE_CONDITIONS, RENDER_CLIP

_OPEN_OUTCOMES = (AttemptOutcome.RUNNING, AttemptOutcome.LOST)  # the process has not reported the end


class AttemptKey(NamedTuple):
    """The work of an attempt: one clip, or the conditions of all clips. `number`: one attempt at it, from 1."""

    step: str
    clip_index: int | None
    number: int | None = None


CONDITIONS = AttemptKey(ENCODE_CONDITIONS.name, None)


def rendering(clip_index: int, number: int | None = None) -> AttemptKey:
    """Return the key of the attempts to render a clip, or of one of them."""
    return AttemptKey(RENDER_CLIP.name, clip_index, number)


class AttemptRepository(Repository):
    """Heartbeats of attempts."""

    def heartbeat(self, job_id: str, key: AttemptKey) -> None:
        """Record the GPU-seconds so far of the attempt unless it has reported its end; without a number, of the latest.

        The attempt may be lost: after one clip has failed the job, clips of other chains are still rendered.
        """
        finished_at = sa.case((Attempt.outcome == AttemptOutcome.LOST, NOW), else_=None)
        values = {"gpu_seconds": gpu_seconds(NOW), "finished_at": finished_at}
        self._execute(sa.update(Attempt).where(*_latest_open(job_id, key)).values(values))

    def is_alive(self, job_id: str, key: AttemptKey, *, within_seconds: float) -> bool:
        """Return True if no end of the latest attempt is reported and its last heartbeat is at most this old."""
        recent = _last_heartbeat() > NOW - sa.func.make_interval(0, 0, 0, 0, 0, 0, within_seconds)
        alive = sa.select(Attempt.attempt).where(*_latest_open(job_id, key), recent)
        return self._execute(alive).first() is not None


class ConditionsRepository(Repository):
    """Attempts to encode the conditions of a job."""

    def start(self, job_id: str, *, node: str | None = None) -> int:
        """Start an attempt on one GPU of the machine `node` and return its number."""
        with locked_job(self._engine, job_id) as connection:
            return start_attempt(connection, job_id, CONDITIONS, world_size=1, node=node)

    def end(
        self, job_id: str, *, outcome: AttemptOutcome, reason: str | None = None, number: int | None = None
    ) -> None:
        """End this attempt, or the one that runs, if it has not ended."""
        with locked_job(self._engine, job_id) as connection:
            end_attempts(connection, job_id, CONDITIONS._replace(number=number), outcome=outcome, reason=reason)

    def reuse(self, job_id: str, *, made_at: datetime | None) -> None:
        """Record that stored conditions are reused. `made_at`: when this job encoded them, as in `clips.succeed`."""
        with locked_job(self._engine, job_id) as connection:
            if made_at is not None:
                credit_attempt(connection, job_id, CONDITIONS, made_at)
            end_attempts(connection, job_id, CONDITIONS, outcome=AttemptOutcome.LOST)


def start_attempt(connection: sa.Connection, job_id: str, key: AttemptKey, **values: Any) -> int:
    """Insert a new attempt with other `values` of its row and return its number, from 1.

    The caller holds the lock of the job. `key` has no number. An attempt that still runs becomes lost.
    """
    end_attempts(connection, job_id, key, outcome=AttemptOutcome.LOST, reason="Another attempt began.")
    attempt: int = connection.execute(sa.select(_latest(job_id, key))).scalar_one() + 1
    values |= {"job_id": job_id, "step": key.step, "clip_index": key.clip_index, "attempt": attempt}
    connection.execute(sa.insert(Attempt).values(values))
    return attempt


def end_attempts(
    connection: sa.Connection,
    job_id: str,
    key: AttemptKey | None = None,
    *,
    outcome: AttemptOutcome,
    reason: str | None = None,
) -> None:
    """End the running attempts of one key, or of the whole job, and count their GPU-seconds.

    A lost attempt counts until its last heartbeat: its GPU-seconds so far, or the last progress of its clip.
    "succeeded" applies to the attempt of this number, else to the latest one, even if it was marked lost: a clip of
    another chain may have failed the job in the meantime, or another attempt may have begun. An attempt that had ended
    with another outcome keeps its duration.
    """
    progress = sa.select(Clip.updated_at).where(Clip.job_id == Attempt.job_id, Clip.clip_index == Attempt.clip_index)
    end: Any = (
        sa.func.greatest(_last_heartbeat(), progress.scalar_subquery()) if outcome == AttemptOutcome.LOST else NOW
    )
    conditions = [Attempt.job_id == job_id] if key is None else _of(job_id, key)
    if key is not None and outcome == AttemptOutcome.SUCCEEDED:
        conditions.append(Attempt.attempt == _latest(job_id, key))
        end = sa.case((Attempt.outcome.in_(_OPEN_OUTCOMES), end), else_=Attempt.finished_at)
    else:
        conditions.append(Attempt.outcome == AttemptOutcome.RUNNING)
    connection.execute(
        sa
        .update(Attempt)
        .where(*conditions)
        .values(
            outcome=outcome,
            finished_at=end,
            gpu_seconds=gpu_seconds(end),
            reason=storable(reason),
        )
    )


def credit_attempt(connection: sa.Connection, job_id: str, key: AttemptKey, made_at: datetime) -> None:
    """Mark the latest attempt as succeeded if it had started by `made_at`, the time when the reused work was finished.

    The end of that attempt was not recorded, because the database was unreachable or the process was killed.
    """
    ended = sa.func.greatest(sa.func.coalesce(Attempt.finished_at, _last_heartbeat()), sa.func.least(made_at, NOW))
    end = sa.case((Attempt.outcome.in_(_OPEN_OUTCOMES), ended), else_=Attempt.finished_at)
    conditions = (
        *_of(job_id, key),
        Attempt.attempt == _latest(job_id, key),
        Attempt.outcome != AttemptOutcome.SUCCEEDED,
    )
    connection.execute(
        sa
        .update(Attempt)
        .where(*conditions, Attempt.started_at <= made_at)
        .values(outcome=AttemptOutcome.SUCCEEDED, reason=None, finished_at=end, gpu_seconds=gpu_seconds(end))
    )


def supersede_attempts(
    connection: sa.Connection, job_id: str, key: AttemptKey, kept: str, others: Collection[str]
) -> None:
    """Mark the attempts that made takes `others` of a clip as superseded, and those that made `kept` as succeeded."""
    for fingerprints, before, after in (
        (others, AttemptOutcome.SUCCEEDED, AttemptOutcome.SUPERSEDED),
        ([kept], AttemptOutcome.SUPERSEDED, AttemptOutcome.SUCCEEDED),
    ):
        conditions = (*_of(job_id, key), Attempt.outcome == before, Attempt.fingerprint.in_(fingerprints))
        connection.execute(sa.update(Attempt).where(*conditions).values(outcome=after))


def is_latest(connection: sa.Connection, job_id: str, key: AttemptKey) -> bool:
    """Return True if no later attempt at the same work has begun; also without a number."""
    latest = connection.execute(sa.select(_latest(job_id, key._replace(number=None)))).scalar_one()
    return key.number in {None, latest}


def _last_heartbeat() -> Any:
    """Return the time of the last heartbeat: the start of the attempt plus its GPU-seconds so far."""
    so_far = sa.func.coalesce(Attempt.gpu_seconds, 0) / Attempt.world_size
    return Attempt.started_at + so_far * sa.text("interval '1 second'")


def gpu_seconds(end: Any) -> Any:
    """Return the GPU-seconds of an attempt that ends at `end`."""
    return sa.extract("epoch", end - Attempt.started_at) * Attempt.world_size


def _of(job_id: str, key: AttemptKey, attempts: Any = Attempt) -> list[sa.ColumnElement[bool]]:
    same_clip = attempts.clip_index.is_not_distinct_from(key.clip_index)
    same_number = [] if key.number is None else [attempts.attempt == key.number]
    return [attempts.job_id == job_id, attempts.step == key.step, same_clip, *same_number]


def _latest_open(job_id: str, key: AttemptKey) -> list[sa.ColumnElement[bool]]:
    """Return the conditions of the latest attempt if its process has not reported its end."""
    return [*_of(job_id, key), Attempt.attempt == _latest(job_id, key), Attempt.outcome.in_(_OPEN_OUTCOMES)]


def _latest(job_id: str, key: AttemptKey) -> sa.ScalarSelect[int]:
    """Return the number of the key, else that of the latest attempt, 0 if there was none."""
    others = aliased(Attempt)
    latest = sa.select(sa.func.coalesce(sa.func.max(others.attempt), 0)).where(*_of(job_id, key, others))
    return latest.scalar_subquery()
