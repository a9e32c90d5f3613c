"""The ledger: each call is one short transaction of upserts, so that any step may be run again."""

from dataclasses import fields
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from s2v_tasks.metadata.accounting import Accounts
from s2v_tasks.metadata.attempts import AttemptLedger
from s2v_tasks.metadata.clips import ClipLedger
from s2v_tasks.metadata.conditions import ConditionsLedger
from s2v_tasks.metadata.jobs import JobLedger
from s2v_tasks.metadata.notifications import NotificationLedger
from s2v_tasks.metadata.records import ArtifactRecord, AttemptRecord, ClipRecord, EventRecord, JobRecord
from s2v_tasks.metadata.session import transaction
from s2v_tasks.metadata.statements import NOW, add_event, lock_job
from s2v_tasks.metadata.tables import ArtifactRow, Attempt, Clip, Event, Job
from s2v_tasks.schemas.events import JobEvent
from s2v_tasks.schemas.manifest import Manifest

Record = TypeVar("Record", ClipRecord, AttemptRecord, ArtifactRecord, EventRecord)


class Ledger(JobLedger, ClipLedger, ConditionsLedger, AttemptLedger, Accounts, NotificationLedger):
    """What is known about every job; PermanentError when a call names a job that was never queued."""

    def record_artifacts(self, manifest: Manifest) -> None:
        """Record the outputs of a manifest."""
        with transaction(self._engine) as connection:
            lock_job(connection, manifest.job_id)
            for artifact in manifest.outputs.values():
                values = {
                    "job_id": manifest.job_id,
                    "step": manifest.step,
                    "fingerprint": manifest.fingerprint,
                    "sha256": artifact.sha256,
                    "size_bytes": artifact.size_bytes,
                }
                statement = insert(ArtifactRow).values(key=artifact.key, **values)
                connection.execute(
                    statement.on_conflict_do_update(index_elements=["key"], set_={**values, "updated_at": NOW})
                )

    def event(
        self,
        job_id: str,
        event: JobEvent,
        *,
        step: str | None = None,
        clip_index: int | None = None,
        detail: dict[str, Any] | None = None,
    ) -> None:
        """Note that something happened."""
        with transaction(self._engine) as connection:
            add_event(connection, job_id, event, step=step, clip_index=clip_index, detail=detail)

    def jobs(
        self, limit: int = 50, *, status: str | None = None, labels: dict[str, str] | None = None
    ) -> list[JobRecord]:
        """The newest jobs first; of one status, and with all of these labels, where given."""
        statement = sa.select(Job.__table__).order_by(Job.created_at.desc(), Job.job_id).limit(limit)
        if status is not None:
            statement = statement.where(Job.status == status)
        if labels:
            statement = statement.where(Job.labels.contains(labels))
        with transaction(self._engine) as connection:
            return [JobRecord(**row) for row in connection.execute(statement).mappings()]

    def job(self, job_id: str) -> JobRecord | None:
        """One job with its clips, attempts, artifacts and events in order; None when it is not on record."""
        with transaction(self._engine) as connection:
            row = connection.execute(sa.select(Job.__table__).where(Job.job_id == job_id)).mappings().one_or_none()
            if row is None:
                return None
            return JobRecord(
                **row,
                clips=_rows(connection, ClipRecord, Clip, job_id, Clip.clip_index),
                attempts=_rows(connection, AttemptRecord, Attempt, job_id, Attempt.started_at),
                artifacts=_rows(connection, ArtifactRecord, ArtifactRow, job_id, ArtifactRow.key),
                events=_rows(connection, EventRecord, Event, job_id, Event.id),
            )


def _rows(connection: sa.Connection, record: type[Record], table: Any, job_id: str, order: Any) -> tuple[Record, ...]:
    columns = [getattr(table, field.name) for field in fields(record)]
    statement = sa.select(*columns).where(table.job_id == job_id).order_by(order)
    return tuple(record(**row) for row in connection.execute(statement).mappings())
