"""What becomes of a clip: attempts to render it, their progress, their end."""

from datetime import datetime
from typing import Any

import sqlalchemy as sa

from s2v_tasks.metadata.attempts import begin_attempt, credit_attempt, end_attempts, rendering
from s2v_tasks.metadata.session import transaction
from s2v_tasks.metadata.statements import add_event, lock_job, storable, update_clip
from s2v_tasks.schemas.events import JobEvent
from s2v_tasks.schemas.job import AttemptOutcome, ClipStatus
from s2v_tasks.schemas.plan import InheritedClip


class ClipLedger:
    """The road of a clip; each call is one transaction."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def clip_started(self, job_id: str, clip_index: int, fingerprint: str, *, world_size: int = 1) -> None:
        """An attempt to render a clip begins, on `world_size` GPUs."""
        fresh = {"progress_step": None, "eta_seconds": None, "gpu_memory_bytes": None}
        values = {
            "status": ClipStatus.RENDERING,
            "fingerprint": fingerprint,
            "reused": False,
            "source_job_id": None,
        } | fresh
        with transaction(self._engine) as connection:
            lock_job(connection, job_id)
            attempt = begin_attempt(connection, job_id, rendering(clip_index), world_size)
            update_clip(connection, job_id, clip_index, values | {"attempts": attempt})
            add_event(connection, job_id, JobEvent.CLIP_STARTED, clip_index=clip_index, detail={"attempt": attempt})

    def clip_progress(
        self,
        job_id: str,
        clip_index: int,
        step: int,
        num_steps: int,
        *,
        eta_seconds: float | None = None,
        gpu_memory_bytes: int | None = None,
    ) -> None:
        """Solver step `step` of `num_steps` is done; the clip needs about `eta_seconds` more."""
        values = {"status": ClipStatus.RENDERING, "progress_step": step, "progress_steps": num_steps}
        with transaction(self._engine) as connection:
            update_clip(
                connection,
                job_id,
                clip_index,
                values | {"eta_seconds": eta_seconds, "gpu_memory_bytes": gpu_memory_bytes},
            )

    def clip_succeeded(
        self, job_id: str, clip_index: int, facts: dict[str, Any], reused: bool, *, made_at: datetime | None = None
    ) -> None:
        """The clip is there, rendered now or reused; `facts` tell what its rendering cost, then as now.

        made_at: when this job rendered a clip that is reused; the attempt that did it may not have been able to say so.
        """
        values = {
            "status": ClipStatus.SUCCEEDED,
            "reused": reused,
            "eta_seconds": None,
            "facts": storable(facts),
            "render_seconds": facts.get("render_seconds"),
        }
        with transaction(self._engine) as connection:
            lock_job(connection, job_id)
            if reused and made_at is not None:
                credit_attempt(connection, job_id, rendering(clip_index), made_at)
            end_attempts(
                connection,
                job_id,
                rendering(clip_index),
                outcome=AttemptOutcome.LOST if reused else AttemptOutcome.SUCCEEDED,
            )
            update_clip(connection, job_id, clip_index, values)
            add_event(connection, job_id, JobEvent.CLIP_SUCCEEDED, clip_index=clip_index, detail={"reused": reused})

    def clip_inherited(self, job_id: str, clip: InheritedClip, *, facts: dict[str, Any]) -> None:
        """The clip is another job's, which rendered it at the cost that `facts` tell; this job spent nothing on it."""
        values = {
            "status": ClipStatus.SUCCEEDED,
            "reused": True,
            "fingerprint": clip.fingerprint,
            "source_job_id": clip.source_job_id,
            "facts": storable(facts),
            "render_seconds": facts.get("render_seconds"),
        }
        with transaction(self._engine) as connection:
            lock_job(connection, job_id)
            update_clip(connection, job_id, clip.clip_index, values)
            detail = {"source_job_id": clip.source_job_id}
            add_event(connection, job_id, JobEvent.CLIP_INHERITED, clip_index=clip.clip_index, detail=detail)

    def clip_failed(
        self, job_id: str, clip_index: int, reason: str, *, outcome: AttemptOutcome = AttemptOutcome.FAILED
    ) -> None:
        """An attempt to render a clip failed, or was interrupted and has saved its state."""
        with transaction(self._engine) as connection:
            lock_job(connection, job_id)
            end_attempts(connection, job_id, rendering(clip_index), outcome=outcome, reason=reason)
            update_clip(connection, job_id, clip_index, {"status": ClipStatus.FAILED, "eta_seconds": None})
            add_event(connection, job_id, JobEvent.CLIP_FAILED, clip_index=clip_index, detail={"reason": reason})
