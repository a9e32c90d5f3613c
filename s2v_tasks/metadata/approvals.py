"""Approvals: questions to people about a clip or a video, and their answers."""

from datetime import timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from s2v_tasks.metadata.events import EventRepository
from s2v_tasks.metadata.session import transaction
from s2v_tasks.metadata.sql import NOW, Repository, load_rows, locked_job, storable
from s2v_tasks.metadata.tables import Approval
from s2v_tasks.schemas.approval import ApprovalStatus, Rejection
from s2v_tasks.schemas.events import JobEvent

_EVENTS = {
    ApprovalStatus.APPROVED: JobEvent.APPROVAL_GIVEN,
    ApprovalStatus.REJECTED: JobEvent.APPROVAL_REFUSED,
    ApprovalStatus.EXPIRED: JobEvent.APPROVAL_EXPIRED,
}


class ApprovalRepository(Repository):
    """Approvals of all jobs. `clip_index` None means the whole video."""

    def __init__(self, engine: sa.Engine, events: EventRepository) -> None:
        super().__init__(engine)
        self._events = events

    def find(self, job_id: str, clip_index: int | None, fingerprint: str, run_id: str | None) -> Approval | None:
        """Return the decision about these bytes; None if there is none.

        An approval is valid in every start of the job. A rejection ends its start; a later start asks again.
        """
        with transaction(self._engine) as connection:
            return _decision(connection, job_id, clip_index, fingerprint, run_id)

    def request(
        self, job_id: str, clip_index: int | None, fingerprint: str, *, run_id: str | None, seconds: float
    ) -> Approval:
        """Return the decision about these bytes, or a waiting approval that expires after `seconds`.

        A job waits for one approval at a time. An unanswered approval is withdrawn when the job asks again.
        """
        with locked_job(self._engine, job_id) as connection:
            if found := _decision(connection, job_id, clip_index, fingerprint, run_id):
                return found
            withdraw_approvals(connection, job_id)
            values: dict[str, Any] = {
                "job_id": job_id,
                "clip_index": clip_index,
                "fingerprint": fingerprint,
                "dag_run_id": run_id,
                "status": ApprovalStatus.WAITING,
                "expires_at": NOW + timedelta(seconds=seconds),
            }
            new = insert(Approval).values(values).returning(Approval.__table__)
            approval = Approval(**connection.execute(new).mappings().one())
            self._events.add(
                connection,
                job_id,
                JobEvent.APPROVAL_REQUESTED,
                clip_index=clip_index,
                detail={"expires_at": approval.expires_at.isoformat()},
            )
            return approval

    def decide(
        self,
        waiting: Approval,
        status: ApprovalStatus,
        *,
        user: str | None = None,
        rejection: Rejection | None = None,
        next_job_id: str | None = None,
    ) -> None:
        """Record the answer to an approval that waits; a second answer changes nothing."""
        values: dict[str, Any] = {"status": status, "decided_by": user, "next_job_id": next_job_id, "decided_at": NOW}
        detail = {"user": user, "next_job_id": next_job_id}
        if rejection is not None:
            values["rejection"] = rejection.model_dump(exclude_none=True)
            detail["note"] = rejection.note or ""
        undecided = (Approval.id == waiting.id, Approval.status == ApprovalStatus.WAITING)
        with locked_job(self._engine, waiting.job_id) as connection:
            update = sa.update(Approval).where(*undecided).values(storable(values))
            if connection.execute(update).rowcount:
                self._events.add(
                    connection, waiting.job_id, _EVENTS[status], clip_index=waiting.clip_index, detail=detail
                )


def withdraw_approvals(connection: sa.Connection, job_id: str) -> None:
    """Withdraw the waiting approvals, because the job ends or asks again."""
    waiting = (Approval.job_id == job_id, Approval.status == ApprovalStatus.WAITING)
    values = {"status": ApprovalStatus.WITHDRAWN, "decided_at": NOW}
    connection.execute(sa.update(Approval).where(*waiting).values(values))


def _decision(
    connection: sa.Connection, job_id: str, clip_index: int | None, fingerprint: str, run_id: str | None
) -> Approval | None:
    rejected_now = sa.and_(Approval.status == ApprovalStatus.REJECTED, Approval.dag_run_id.is_not_distinct_from(run_id))
    found = load_rows(
        connection,
        Approval,
        Approval.job_id == job_id,
        Approval.clip_index.is_not_distinct_from(clip_index),
        Approval.fingerprint == fingerprint,
        sa.or_(Approval.status == ApprovalStatus.APPROVED, rejected_now),
        order=Approval.id.desc(),
    )
    return found[0] if found else None
