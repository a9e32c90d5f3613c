"""Jobs from queued to ended."""

from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from s2v_tasks.metadata.ends import cancel_job, fail_job
from s2v_tasks.metadata.events import EventRepository
from s2v_tasks.metadata.session import transaction
from s2v_tasks.metadata.sql import (
    NOW,
    Repository,
    load_rows,
    locked_job,
    queued_run_id,
    request_columns,
    storable,
    update_job,
    upsert,
    upsert_job,
)
from s2v_tasks.metadata.starts import check_owner, clear_cancel, is_cancellable, is_settled, refuse_late
from s2v_tasks.metadata.tables import Approval, ArtifactRow, Attempt, Clip, Event, Job
from s2v_tasks.schemas.events import JobEvent
from s2v_tasks.schemas.job import ENDED_STATUSES, QUEUED_SOURCES, ClipStatus, JobStatus, Source
from s2v_tasks.schemas.plan import Plan

_LOST = "Its run disappeared from Airflow or ended without closing it; start the job again: finished clips are reused."


class JobRepository(Repository):
    """All jobs."""

    def __init__(self, engine: sa.Engine, events: EventRepository) -> None:
        super().__init__(engine)
        self._events = events

    def recent(self, limit: int = 50, *, status: str | None = None, labels: dict[str, str] | None = None) -> list[Job]:
        """Return the newest jobs first, without clips and events. `status`, `labels`: only jobs that match."""
        statement = sa.select(Job.__table__).order_by(Job.created_at.desc(), Job.job_id).limit(limit)
        if status is not None:
            statement = statement.where(Job.status == status)
        if labels:
            statement = statement.where(Job.labels.contains(labels))
        return [Job(**row) for row in self._execute(statement).mappings()]

    def get(self, job_id: str) -> Job | None:
        """Return one job with its clips, attempts, artifacts, events and approvals; None if it does not exist."""
        with transaction(self._engine) as connection:
            row = connection.execute(sa.select(Job.__table__).where(Job.job_id == job_id)).mappings().one_or_none()
            if row is None:
                return None
            return Job(
                **row,
                clips=tuple(load_rows(connection, Clip, Clip.job_id == job_id, order=Clip.clip_index)),
                attempts=tuple(load_rows(connection, Attempt, Attempt.job_id == job_id, order=Attempt.started_at)),
                artifacts=tuple(
                    load_rows(connection, ArtifactRow, ArtifactRow.job_id == job_id, order=ArtifactRow.key)
                ),
                events=tuple(load_rows(connection, Event, Event.job_id == job_id, order=Event.id)),
                approvals=tuple(load_rows(connection, Approval, Approval.job_id == job_id, order=Approval.id)),
            )

    def enqueue(
        self, job_id: str, request: dict[str, Any], *,
        source: Source | None = None, dag_run_id: str | None = None, began_at: datetime | None = None,
    ) -> None:  # fmt: skip
        """Create a job, or queue it again with this request; it keeps its first source. `began_at`: see `start`.

        A job that runs keeps running if this is another try of the first step of its run. Raises JobTakenError and
        changes nothing if the id belongs to another request.
        """
        values: dict[str, Any] = {
            "status": JobStatus.QUEUED,
            "reason": None,
            "request": request,
            "started_at": None,
            "finished_at": None,
        }
        values |= request_columns(request)
        if dag_run_id is not None:
            values["dag_run_id"] = dag_run_id
        with transaction(self._engine) as connection:
            # The second of two concurrent callers blocks here and then reads the request of the first.
            created = {"job_id": job_id, "created_at": began_at or NOW}
            new = insert(Job).values(**created, **storable(values)).on_conflict_do_nothing()
            if connection.execute(new.returning(Job.job_id)).first() is None:
                check_owner(connection, job_id, request, run_id=dag_run_id)
                refuse_late(connection, job_id, began_at)
                again = {"request": request} | request_columns(request)
                if update_job(connection, job_id, again, Job.status == JobStatus.RUNNING, Job.dag_run_id == dag_run_id):
                    return
            clear_cancel(connection, job_id)
            upsert_job(connection, job_id, values, source=source)
            self._events.add(connection, job_id, JobEvent.JOB_QUEUED)

    def check_request(self, job_id: str, request: dict[str, Any], *, given_only: bool = False) -> None:
        """Raise JobTakenError if the id belongs to another request. `given_only`: compare only fields that are set."""
        with transaction(self._engine) as connection:
            check_owner(connection, job_id, request, run_id=None, given_only=given_only)

    def start(self, job_id: str, *, by_clip: bool = False, began_at: datetime | None = None) -> None:
        """Record that the job runs, again if it had ended; nothing changes if it runs already.

        `by_clip`: the caller starts a clip. After one clip has failed the job, clips of other chains continue. They
        belong to the failed start and do not restart the job until `close_job` has closed it. `began_at`: when the step
        of the caller began, which becomes the start of the job; TransientError if the job has ended or was started
        again since.
        """
        values = {"status": JobStatus.RUNNING, "reason": None, "started_at": began_at or NOW, "finished_at": None}
        with locked_job(self._engine, job_id) as connection:
            if by_clip and not is_settled(connection, job_id):
                return
            refuse_late(connection, job_id, began_at, by_clip=by_clip)
            if update_job(connection, job_id, values, Job.status != JobStatus.RUNNING):
                self._events.add(connection, job_id, JobEvent.JOB_STARTED)

    def refuse_late(self, job_id: str, began_at: datetime) -> None:
        """Raise TransientError if the job has ended or was started again since `began_at`."""
        with transaction(self._engine) as connection:
            refuse_late(connection, job_id, began_at)

    def record_plan(self, job_id: str, plan: Plan, *, began_at: datetime | None = None) -> None:
        """Record the summary of the plan and its clips, all pending; clips beyond the plan are deleted.

        `began_at`: see `start`.
        """
        estimate = plan.estimate
        summary = {
            "num_clip": plan.num_clip,
            "num_frames": plan.num_frames,
            "width": plan.width,
            "height": plan.height,
            "estimated_gpu_seconds": estimate.gpu_seconds,
        }
        price = {
            "gpu": estimate.gpu,
            "cost_per_gpu_hour": 3600 * estimate.cost / estimate.gpu_seconds if estimate.gpu_seconds else None,
            "currency": estimate.currency,
        }
        fresh = {"status": ClipStatus.PENDING, "reused": False, "progress_steps": plan.sampling.sample_steps}
        fresh |= dict.fromkeys(("source_job_id", "progress_step", "eta_seconds", "gpu_memory_bytes", "quality"))
        with locked_job(self._engine, job_id) as connection:
            refuse_late(connection, job_id, began_at)
            update_job(connection, job_id, summary | price | {"preset": plan.preset})
            connection.execute(sa.delete(Clip).where(Clip.job_id == job_id, Clip.clip_index >= plan.num_clip))
            for clip in plan.clips:
                frames = {"start_frame": clip.start_frame, "end_frame": clip.end_frame}
                upsert(connection, Clip, {"job_id": job_id, "clip_index": clip.clip_index}, frames | fresh)
            self._events.add(connection, job_id, JobEvent.JOB_PLANNED, detail=summary)

    def fail(self, job_id: str, reason: str, *, began_at: datetime | None = None) -> None:
        """Fail the job and the clips it renders; a job that was never queued is created.

        A later reason replaces the earlier one; the webhook gets a message only for the first failure. `began_at`: when
        the step of the caller began; TransientError if the job succeeded, was cancelled or was started again since.
        """
        with transaction(self._engine) as connection:
            fail_job(connection, self._events, job_id, reason, began_at)

    def refuse(self, job_id: str, reason: str) -> bool:
        """Fail a job that waits in the queue. Return False and change nothing if it has a DAG run or has ended."""
        waits = (Job.job_id == job_id, Job.status == JobStatus.QUEUED, Job.dag_run_id.is_(None))
        with locked_job(self._engine, job_id) as connection:
            if is_waiting := connection.execute(sa.select(Job.job_id).where(*waits)).first() is not None:
                fail_job(connection, self._events, job_id, reason)
        return is_waiting

    def close_lost(self, job_id: str, run_id: str) -> bool:
        """End a job whose DAG run `run_id` is gone: cancelled if that was requested, failed otherwise.

        Return False and change nothing if the job has ended or has another run.
        """
        with transaction(self._engine) as connection:
            columns = sa.select(Job.status, Job.dag_run_id, Job.cancel_requested_at).where(Job.job_id == job_id)
            job = connection.execute(columns.with_for_update()).one_or_none()
            if job is None or job.status in ENDED_STATUSES or job.dag_run_id != run_id:
                return False
            if job.cancel_requested_at:
                cancel_job(connection, self._events, job_id)
            else:
                fail_job(connection, self._events, job_id, _LOST)
            self._events.add(connection, job_id, JobEvent.RUN_LOST, detail={"dag_run_id": run_id})
        return True

    def request_cancel(self, job_id: str) -> str | None:
        """Ask all steps of a job to stop; return the job's status, None if it does not exist.

        A failed job whose run still renders clips becomes cancelled at once. Another job that has ended is unchanged.
        """
        with transaction(self._engine) as connection:
            columns = sa.select(Job.status, Job.reason).where(Job.job_id == job_id)
            job = connection.execute(columns.with_for_update()).one_or_none()
            if job is None:
                return None
            if job.status in ENDED_STATUSES and not is_cancellable(connection, job_id):
                return str(job.status)
            if update_job(connection, job_id, {"cancel_requested_at": NOW}, Job.cancel_requested_at.is_(None)):
                self._events.add(connection, job_id, JobEvent.CANCEL_REQUESTED)
            if job.status != JobStatus.FAILED:
                return str(job.status)
            cancel_job(connection, self._events, job_id, failure=job.reason)
        return JobStatus.CANCELLED

    def is_cancellable(self, job_id: str) -> bool:
        """Return True if the job has not ended, or has failed while its run may still render clips."""
        with transaction(self._engine) as connection:
            return is_cancellable(connection, job_id)

    def is_cancel_requested(self, job_id: str) -> bool:
        """Return True if a cancel of the job was requested."""
        statement = sa.select(Job.cancel_requested_at).where(Job.job_id == job_id)
        return self._execute(statement).scalar() is not None

    def clear_cancel(self, job_id: str, run_id: str | None = None) -> None:
        """Clear the cancel request of an ended job that starts again as the DAG run `run_id`.

        Keep the request if the job waited for this run: it was cancelled while the queue was about to start it. The job
        then has that run, so that clearing the run in Airflow starts it again.
        """
        waited = (Job.status == JobStatus.CANCELLED, Job.source.in_(QUEUED_SOURCES), Job.dag_run_id.is_(None))
        with transaction(self._engine) as connection:
            if not update_job(connection, job_id, {"dag_run_id": run_id}, *waited, queued_run_id() == run_id):
                clear_cancel(connection, job_id)

    def cancel(self, job_id: str, reason: str | None = None, *, began_at: datetime | None = None) -> None:
        """End the job as cancelled; finished clips keep their status. `reason`: the default counts the clips.

        `began_at`: when the step of the caller began; TransientError if the job was started again since.
        """
        with locked_job(self._engine, job_id) as connection:
            refuse_late(connection, job_id, began_at, ())
            cancel_job(connection, self._events, job_id, reason)

    def succeed(self, job_id: str, video_uri: str, sha256: str, *, began_at: datetime | None = None) -> None:
        """Record that the video is published; the webhook gets a message only for the first success of a start.

        `began_at`: see `start`; this video may have been recorded before.
        """
        values: dict[str, Any] = {
            "status": JobStatus.SUCCEEDED,
            "reason": None,
            "finished_at": NOW,
            "video_uri": video_uri,
            "sha256": sha256,
        }
        with locked_job(self._engine, job_id) as connection:
            columns = sa.select(Job.status, Job.video_uri, Job.sha256)
            before = connection.execute(columns.where(Job.job_id == job_id)).one()
            if before != (JobStatus.SUCCEEDED, video_uri, sha256):
                refuse_late(connection, job_id, began_at)
            update_job(connection, job_id, values)
            detail = {"video_uri": video_uri, "sha256": sha256}
            is_new = before.status != JobStatus.SUCCEEDED
            self._events.add(connection, job_id, JobEvent.JOB_SUCCEEDED, detail=detail, notify=is_new)
