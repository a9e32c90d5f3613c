"""What was spent on clips: every rendering that was begun, whatever became of it."""

from typing import Any

import sqlalchemy as sa

from s2v_tasks.metadata.statements import NOW, storable
from s2v_tasks.metadata.tables import Attempt, Clip


def begin_attempt(connection: sa.Connection, job_id: str, clip_index: int, world_size: int) -> int:
    """Put a new attempt on record and return its number, from 1. One that still runs is lost: it cannot end any more.

    The caller holds the lock of the job.
    """
    end_attempts(connection, job_id, clip_index, outcome="lost", reason="Another attempt began.")
    last = sa.select(sa.func.coalesce(sa.func.max(Attempt.attempt), 0)).where(
        Attempt.job_id == job_id, Attempt.clip_index == clip_index
    )
    attempt: int = connection.execute(last).scalar_one() + 1
    values = {"job_id": job_id, "clip_index": clip_index, "attempt": attempt, "world_size": world_size}
    connection.execute(sa.insert(Attempt).values(**values))
    return attempt


def end_attempts(
    connection: sa.Connection, job_id: str, clip_index: int | None = None, *, outcome: str, reason: str | None = None
) -> None:
    """End what runs of a clip, or of the whole job, and count its GPU-seconds.

    A lost attempt counts until its last sign of life. succeeded: the latest attempt of a clip, also where it was taken
    for lost: a clip of another chain may have failed the job meanwhile.
    """
    last_sign = (
        sa
        .select(sa.func.greatest(Clip.updated_at, Attempt.started_at))
        .where(Clip.job_id == Attempt.job_id, Clip.clip_index == Attempt.clip_index)
        .scalar_subquery()
    )
    end: Any = sa.func.coalesce(last_sign, Attempt.started_at) if outcome == "lost" else NOW
    which = [Attempt.job_id == job_id]
    if clip_index is not None:
        which.append(Attempt.clip_index == clip_index)
    if outcome == "succeeded":
        latest = sa.select(Clip.attempts).where(Clip.job_id == job_id, Clip.clip_index == clip_index).scalar_subquery()
        which.append(Attempt.attempt == latest)
    else:
        which.append(Attempt.outcome == "running")
    connection.execute(
        sa
        .update(Attempt)
        .where(*which)
        .values(
            outcome=outcome,
            finished_at=end,
            gpu_seconds=sa.extract("epoch", end - Attempt.started_at) * Attempt.world_size,
            reason=storable(reason),
        )
    )
