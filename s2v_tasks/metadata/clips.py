"""Clips: attempts to render them, progress, outcome; and the stored objects (artifacts) of all steps."""

from datetime import datetime
from typing import Any

import sqlalchemy as sa

from s2v_tasks.metadata.attempts import (
    CONDITIONS,
    AttemptKey,
    credit_attempt,
    end_attempts,
    is_latest,
    rendering,
    start_attempt,
    supersede_attempts,
)
from s2v_tasks.metadata.events import EventRepository
from s2v_tasks.metadata.sql import Repository, locked_job, storable, update_clip, upsert
from s2v_tasks.metadata.tables import ArtifactRow, Clip, Event
from s2v_tasks.schemas.events import JobEvent
from s2v_tasks.schemas.job import AttemptOutcome, ClipStatus
from s2v_tasks.schemas.manifest import ClipFacts, Manifest
from s2v_tasks.schemas.plan import InheritedClip
from s2v_tasks.schemas.quality import TakeRecord

_MAX_DONOR_JOBS = 3  # more than one job, because objects of a job may be lost


class ClipRepository(Repository):
    """Clips of all jobs."""

    def __init__(self, engine: sa.Engine, events: EventRepository) -> None:
        super().__init__(engine)
        self._events = events

    def start(
        self, job_id: str, clip_index: int, fingerprint: str, *, world_size: int = 1, node: str | None = None
    ) -> int:
        """Start an attempt to render a clip on `world_size` GPUs of the machine `node` and return its number."""
        values = {"status": ClipStatus.RENDERING, "fingerprint": fingerprint, "reused": False}
        values |= dict.fromkeys(("source_job_id", "progress_step", "eta_seconds", "gpu_memory_bytes"))
        with locked_job(self._engine, job_id) as connection:
            attempt = start_attempt(
                connection, job_id, rendering(clip_index), world_size=world_size, fingerprint=fingerprint, node=node
            )
            update_clip(connection, job_id, clip_index, values | {"attempts": attempt})
            detail = {"attempt": attempt} | ({"node": node} if node else {})
            self._events.add(connection, job_id, JobEvent.CLIP_STARTED, clip_index=clip_index, detail=detail)
        return attempt

    def record_progress(
        self,
        job_id: str,
        clip_index: int,
        step: int,
        num_steps: int,
        *,
        eta_seconds: float | None = None,
        gpu_memory_bytes: int | None = None,
    ) -> None:
        """Record that solver step `step` of `num_steps` is done and that about `eta_seconds` remain.

        A finished clip does not change: another process may have taken the place of this one.
        """
        values = {"status": ClipStatus.RENDERING, "progress_step": step, "progress_steps": num_steps}
        values |= {"eta_seconds": eta_seconds, "gpu_memory_bytes": gpu_memory_bytes}
        unfinished = (Clip.job_id == job_id, Clip.clip_index == clip_index, Clip.status != ClipStatus.SUCCEEDED)
        self._execute(sa.update(Clip).where(*unfinished).values(**values))

    def succeed(
        self,
        job_id: str,
        clip_index: int,
        facts: ClipFacts,
        reused: bool,
        *,
        made_at: datetime | None = None,
        number: int | None = None,
    ) -> None:
        """Record that the clip is stored, rendered now or reused. `facts`: the cost of its rendering.

        made_at: when this job rendered a reused clip. The attempt that rendered it may have been unable to report it.
        number: the attempt that rendered it now; None: the latest.
        The webhook gets one message for each start of the job and each new rendering, also if the step is repeated.
        """
        values = {
            "status": ClipStatus.SUCCEEDED,
            "reused": reused,
            "eta_seconds": None,
            "facts": storable(facts.model_dump(mode="json")),
            "render_seconds": facts.render_seconds,
        }
        with locked_job(self._engine, job_id) as connection:
            _end_attempt(connection, job_id, rendering(clip_index, number), reused, made_at)
            update_clip(connection, job_id, clip_index, values)
            is_new = not _is_reported(connection, job_id, clip_index)
            self._events.add(
                connection,
                job_id,
                JobEvent.CLIP_SUCCEEDED,
                clip_index=clip_index,
                detail={"reused": reused},
                notify=is_new,
            )

    def end_take(
        self,
        job_id: str,
        clip_index: int,
        reused: bool,
        *,
        made_at: datetime | None = None,
        number: int | None = None,
    ) -> None:
        """Record that a take of the clip is stored, but that the clip is not decided yet; arguments as in `succeed`."""
        with locked_job(self._engine, job_id) as connection:
            _end_attempt(connection, job_id, rendering(clip_index, number), reused, made_at)

    def record_quality(self, job_id: str, record: TakeRecord) -> None:
        """Record the measured takes of a clip. Attempts that made other takes than the kept one become superseded."""
        kept = record.kept_take
        values: dict[str, Any] = {"quality": storable(record.without_series().model_dump(mode="json"))}
        with locked_job(self._engine, job_id) as connection:
            if kept is not None:
                values["fingerprint"] = kept.fingerprint
                others = [take.fingerprint for take in record.takes if take is not kept]
                supersede_attempts(connection, job_id, rendering(record.clip_index), kept.fingerprint, others)
            update_clip(connection, job_id, record.clip_index, values)

    def inherit(self, job_id: str, clip: InheritedClip, *, facts: ClipFacts) -> None:
        """Record that the clip was copied from another job, which paid for it. `facts`: the cost of its rendering."""
        values = {
            "status": ClipStatus.SUCCEEDED,
            "reused": True,
            "fingerprint": clip.fingerprint,
            "source_job_id": clip.source_job_id,
            "facts": storable(facts.model_dump(mode="json")),
            "render_seconds": facts.render_seconds,
        }
        with locked_job(self._engine, job_id) as connection:
            update_clip(connection, job_id, clip.clip_index, values)
            detail = {"source_job_id": clip.source_job_id}
            self._events.add(connection, job_id, JobEvent.CLIP_INHERITED, clip_index=clip.clip_index, detail=detail)

    def fail(
        self,
        job_id: str,
        clip_index: int,
        reason: str,
        *,
        outcome: AttemptOutcome = AttemptOutcome.FAILED,
        number: int | None = None,
    ) -> None:
        """Record that an attempt to render a clip failed, or was interrupted and has saved its state.

        An interrupted clip is pending again. number: the attempt; None: the latest. The clip stays as it is if a later
        attempt has begun.
        """
        key = rendering(clip_index, number)
        status, event = ClipStatus.FAILED, JobEvent.CLIP_FAILED
        if outcome == AttemptOutcome.INTERRUPTED:
            status, event = ClipStatus.PENDING, JobEvent.CLIP_INTERRUPTED
        with locked_job(self._engine, job_id) as connection:
            end_attempts(connection, job_id, key, outcome=outcome, reason=reason)
            if is_latest(connection, job_id, key):
                update_clip(connection, job_id, clip_index, {"status": status, "eta_seconds": None})
            self._events.add(connection, job_id, event, clip_index=clip_index, detail={"reason": reason})


class ArtifactRepository(Repository):
    """Artifacts of all jobs."""

    def record(self, manifest: Manifest) -> None:
        """Record the outputs of a manifest."""
        made_by = {"job_id": manifest.job_id, "step": manifest.step, "fingerprint": manifest.fingerprint}
        with locked_job(self._engine, manifest.job_id) as connection:
            for artifact in manifest.outputs.values():
                values = {"sha256": artifact.sha256, "size_bytes": artifact.size_bytes} | made_by
                upsert(connection, ArtifactRow, {"key": artifact.key}, values)

    def jobs_with_conditions(self, fingerprint: str) -> list[str]:
        """Return the ids of jobs whose conditions have this fingerprint, the latest first."""
        statement = (
            sa
            .select(ArtifactRow.job_id)
            .where(ArtifactRow.fingerprint == fingerprint, ArtifactRow.step == CONDITIONS.step)
            .order_by(ArtifactRow.updated_at.desc())
            .limit(_MAX_DONOR_JOBS)
        )
        return list(self._execute(statement).scalars())


def _is_reported(connection: sa.Connection, job_id: str, clip_index: int) -> bool:
    """Return True if a success of the clip is recorded since the job and the last rendering of the clip were started.

    The step repeats the record after a kill, or after an outage in which the answer of the database was lost.
    """
    of_clip = (Event.clip_index == clip_index, Event.event.in_((JobEvent.CLIP_STARTED, JobEvent.CLIP_SUCCEEDED)))
    known = sa.or_(Event.event == JobEvent.JOB_STARTED, sa.and_(*of_clip))
    statement = sa.select(Event.event).where(Event.job_id == job_id, known).order_by(Event.id.desc()).limit(1)
    return connection.execute(statement).scalar() == JobEvent.CLIP_SUCCEEDED


def _end_attempt(
    connection: sa.Connection, job_id: str, key: AttemptKey, reused: bool, made_at: datetime | None
) -> None:
    """End the attempt whose outputs are stored; `made_at`: when an earlier attempt of the job made reused ones."""
    if reused and made_at is not None:
        credit_attempt(connection, job_id, key, made_at)
    end_attempts(connection, job_id, key, outcome=AttemptOutcome.LOST if reused else AttemptOutcome.SUCCEEDED)
