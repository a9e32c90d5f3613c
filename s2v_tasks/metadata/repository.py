"""The ledger: each call is one short transaction of upserts, so that any step may be run again."""

import math
import re
from dataclasses import fields
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from s2v_tasks.errors import PermanentError
from s2v_tasks.metadata.records import ArtifactRecord, ClipRecord, EventRecord, JobRecord
from s2v_tasks.metadata.session import transaction
from s2v_tasks.metadata.tables import ArtifactRow, Clip, Event, Job
from s2v_tasks.schemas.manifest import Manifest
from s2v_tasks.schemas.plan import Plan

Record = TypeVar("Record", ClipRecord, ArtifactRecord, EventRecord)
_NOW = sa.func.now()
_NOT_STORABLE = re.compile(r"[\x00\ud800-\udfff]")


class Ledger:
    """What is known about every job; PermanentError when a call names a job that was never queued."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def job_queued(self, job_id: str, request: dict[str, Any]) -> None:
        """Put a job on record, or queue it again with this request."""
        values = {"status": "queued", "reason": None, "request": request, "started_at": None, "finished_at": None}
        with transaction(self._engine) as connection:
            self._upsert_job(connection, job_id, values)
            self._add_event(connection, job_id, "job_queued")

    def job_started(self, job_id: str) -> None:
        """The job runs, again if it had ended; nothing changes when it runs already."""
        values = {"status": "running", "reason": None, "started_at": _NOW, "finished_at": None}
        with transaction(self._engine) as connection:
            self._lock_job(connection, job_id)
            if self._update_job(connection, job_id, values, Job.status != "running"):
                self._add_event(connection, job_id, "job_started")

    def job_planned(self, job_id: str, plan: Plan) -> None:
        """Record the summary of the plan and its clips, all pending; clips beyond the plan are forgotten."""
        summary = {
            "num_clip": plan.num_clip,
            "num_frames": plan.num_frames,
            "width": plan.width,
            "height": plan.height,
            "estimated_gpu_seconds": plan.estimate.gpu_seconds,
        }
        with transaction(self._engine) as connection:
            self._lock_job(connection, job_id)
            self._update_job(connection, job_id, summary)
            connection.execute(sa.delete(Clip).where(Clip.job_id == job_id, Clip.clip_index >= plan.num_clip))
            for clip in plan.clips:
                frames = {"start_frame": clip.start_frame, "end_frame": clip.end_frame}
                fresh = {"status": "pending", "progress_step": None, "progress_steps": None, "reused": False}
                statement = insert(Clip).values(job_id=job_id, clip_index=clip.clip_index, **frames, **fresh)
                connection.execute(
                    statement.on_conflict_do_update(
                        index_elements=["job_id", "clip_index"], set_={**frames, **fresh, "updated_at": _NOW}
                    )
                )
            self._add_event(connection, job_id, "job_planned", detail=summary)

    def job_failed(self, job_id: str, reason: str) -> None:
        """The job ended badly, and with it what it was rendering; works for a job that was never queued, too."""
        interrupted = (Clip.job_id == job_id, Clip.status == "rendering")
        with transaction(self._engine) as connection:
            self._upsert_job(connection, job_id, {"status": "failed", "reason": reason, "finished_at": _NOW})
            connection.execute(sa.update(Clip).where(*interrupted).values(status="failed", updated_at=_NOW))
            self._add_event(connection, job_id, "job_failed", detail={"reason": reason})

    def job_succeeded(self, job_id: str, video_uri: str, sha256: str) -> None:
        """The video is published."""
        values = {"status": "succeeded", "reason": None, "finished_at": _NOW, "video_uri": video_uri, "sha256": sha256}
        with transaction(self._engine) as connection:
            self._lock_job(connection, job_id)
            self._update_job(connection, job_id, values)
            self._add_event(connection, job_id, "job_succeeded", detail={"video_uri": video_uri, "sha256": sha256})

    def clip_started(self, job_id: str, clip_index: int, fingerprint: str) -> None:
        """An attempt to render a clip begins."""
        values = {
            "status": "rendering",
            "fingerprint": fingerprint,
            "attempts": Clip.attempts + 1,
            "progress_step": None,
            "progress_steps": None,
            "reused": False,
        }
        with transaction(self._engine) as connection:
            self._update_clip(connection, job_id, clip_index, values)
            self._add_event(connection, job_id, "clip_started", clip_index=clip_index)

    def clip_progress(self, job_id: str, clip_index: int, step: int, num_steps: int) -> None:
        """Solver step `step` of `num_steps` is done."""
        values = {"status": "rendering", "progress_step": step, "progress_steps": num_steps}
        with transaction(self._engine) as connection:
            self._update_clip(connection, job_id, clip_index, values)

    def clip_succeeded(self, job_id: str, clip_index: int, facts: dict[str, Any], reused: bool) -> None:
        """The clip is there, rendered now or reused; `facts` tell what its rendering cost, then as now."""
        values = {
            "status": "succeeded",
            "reused": reused,
            "facts": _storable(facts),
            "render_seconds": facts.get("render_seconds"),
        }
        with transaction(self._engine) as connection:
            self._update_clip(connection, job_id, clip_index, values)
            self._add_event(connection, job_id, "clip_succeeded", clip_index=clip_index, detail={"reused": reused})

    def clip_failed(self, job_id: str, clip_index: int, reason: str) -> None:
        """An attempt to render a clip failed."""
        with transaction(self._engine) as connection:
            self._update_clip(connection, job_id, clip_index, {"status": "failed"})
            self._add_event(connection, job_id, "clip_failed", clip_index=clip_index, detail={"reason": reason})

    def record_artifacts(self, manifest: Manifest) -> None:
        """Record the outputs of a manifest."""
        with transaction(self._engine) as connection:
            self._lock_job(connection, manifest.job_id)
            for artifact in manifest.outputs.values():
                values = {
                    "job_id": manifest.job_id,
                    "step": manifest.step,
                    "sha256": artifact.sha256,
                    "size_bytes": artifact.size_bytes,
                }
                statement = insert(ArtifactRow).values(key=artifact.key, **values)
                connection.execute(
                    statement.on_conflict_do_update(index_elements=["key"], set_={**values, "updated_at": _NOW})
                )

    def event(
        self,
        job_id: str,
        event: str,
        *,
        step: str | None = None,
        clip_index: int | None = None,
        detail: dict[str, Any] | None = None,
    ) -> None:
        """Note that something happened."""
        with transaction(self._engine) as connection:
            self._add_event(connection, job_id, event, step=step, clip_index=clip_index, detail=detail)

    def jobs(self, limit: int = 50) -> list[JobRecord]:
        """The newest jobs first."""
        statement = sa.select(Job.__table__).order_by(Job.created_at.desc(), Job.job_id).limit(limit)
        with transaction(self._engine) as connection:
            return [JobRecord(**row) for row in connection.execute(statement).mappings()]

    def job(self, job_id: str) -> JobRecord | None:
        """One job with its clips, artifacts and events in order; None when it is not on record."""
        with transaction(self._engine) as connection:
            row = connection.execute(sa.select(Job.__table__).where(Job.job_id == job_id)).mappings().one_or_none()
            if row is None:
                return None
            return JobRecord(
                **row,
                clips=self._rows(connection, ClipRecord, Clip, job_id, Clip.clip_index),
                artifacts=self._rows(connection, ArtifactRecord, ArtifactRow, job_id, ArtifactRow.key),
                events=self._rows(connection, EventRecord, Event, job_id, Event.id),
            )

    def _rows(
        self, connection: sa.Connection, record: type[Record], table: Any, job_id: str, order: Any
    ) -> tuple[Record, ...]:
        columns = [getattr(table, field.name) for field in fields(record)]
        statement = sa.select(*columns).where(table.job_id == job_id).order_by(order)
        return tuple(record(**row) for row in connection.execute(statement).mappings())

    def _lock_job(self, connection: sa.Connection, job_id: str) -> None:
        """Make the writers of one job take turns, so that none waits for another in a circle."""
        found = connection.execute(sa.select(Job.job_id).where(Job.job_id == job_id).with_for_update()).first()
        if found is None:
            raise PermanentError(f"job {job_id!r} is not on record: run `s2v stage-inputs` for it first.")

    def _upsert_job(self, connection: sa.Connection, job_id: str, values: dict[str, Any]) -> None:
        values = _storable(values)
        statement = insert(Job).values(job_id=job_id, **values)
        connection.execute(
            statement.on_conflict_do_update(index_elements=["job_id"], set_={**values, "updated_at": _NOW})
        )

    def _update_job(
        self, connection: sa.Connection, job_id: str, values: dict[str, Any], *conditions: sa.ColumnElement[bool]
    ) -> bool:
        values = _storable(values)
        statement = sa.update(Job).where(Job.job_id == job_id, *conditions).values(**values, updated_at=_NOW)
        return connection.execute(statement).rowcount > 0

    def _update_clip(self, connection: sa.Connection, job_id: str, clip_index: int, values: dict[str, Any]) -> None:
        statement = (
            sa
            .update(Clip)
            .where(Clip.job_id == job_id, Clip.clip_index == clip_index)
            .values(**values, updated_at=_NOW)
        )
        if connection.execute(statement).rowcount == 0:
            raise PermanentError(
                f"clip {clip_index} of job {job_id!r} is not on record: run `s2v plan-clips` for the job first."
            )

    def _add_event(
        self,
        connection: sa.Connection,
        job_id: str,
        event: str,
        *,
        step: str | None = None,
        clip_index: int | None = None,
        detail: dict[str, Any] | None = None,
    ) -> None:
        values = {"job_id": job_id, "event": event, "step": step, "clip_index": clip_index, "detail": detail or {}}
        connection.execute(insert(Event).values(_storable(values)))


def _storable(value: Any) -> Any:
    """A value without what PostgreSQL refuses: text has U+FFFD for NUL and lone surrogates, JSON the name of NaN.

    A column of numbers reads such a name as the number.
    """
    if isinstance(value, str):
        return _NOT_STORABLE.sub("\ufffd", value)
    if isinstance(value, dict):
        return {_storable(key): _storable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_storable(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value
