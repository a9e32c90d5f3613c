"""The tables of jobs in the project's own database (docs/metadata.md), each also the dataclass of one of its rows.

Times are timestamptz, written as UTC. Rows are created by name only; columns that the database fills may be left out.
"""

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    DateTime,
    ForeignKey,
    Identity,
    Index,
    MetaData,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, MappedAsDataclass, mapped_column

from s2v_tasks.errors import ConfigurationError, PermanentError, TransientError
from s2v_tasks.schemas.approval import ApprovalStatus
from s2v_tasks.schemas.events import JobEvent
from s2v_tasks.schemas.job import (
    DEFAULT_PRIORITY,
    ENDED_STATUSES,
    PRIORITIES,
    AttemptOutcome,
    ClipStatus,
    JobStatus,
    Source,
)
from s2v_tasks.schemas.manifest import ClipFacts
from s2v_tasks.schemas.quality import TakeRecord
from s2v_tasks.schemas.steps import CLOSE_JOB, HEAVY_STEPS, RENDER_CLIP

CANCELLED_EXIT_CODE = 130
_STEP_EXIT_CODES = {error.exit_code for error in (PermanentError, ConfigurationError, TransientError)}
NOTIFICATION_STATUSES = ("pending", "delivered", "failed", "refused")


def one_of(column: str, values: Iterable[str]) -> str:
    """Return the SQL condition that a column has one of these values."""
    return f"{column} IN {tuple(str(value) for value in values)}"


class Base(MappedAsDataclass, DeclarativeBase):
    """Base of all tables. Names of constraints follow one pattern, so that migrations can refer to them."""

    metadata = MetaData(
        naming_convention={
            "pk": "pk_%(table_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "ix": "ix_%(table_name)s_%(column_0_name)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
        }
    )
    type_annotation_map = {datetime: DateTime(timezone=True), dict[str, Any]: JSONB}  # noqa: RUF012 - SQLAlchemy's


class Job(Base, kw_only=True):
    """One talking video. Columns of the plan are empty until it is planned; the price is the price at that time.

    A queued job without `dag_run_id` waits to be started. `parent_job_id` and `from_clip`: the job is a rerun, whose
    clips before `from_clip` are those of its parent. `reason`: reason of a failed or cancelled job.
    """

    __tablename__ = "jobs"
    __table_args__ = (
        CheckConstraint(one_of("status", JobStatus), name="status"),
        CheckConstraint(one_of("priority", PRIORITIES), name="priority"),
        CheckConstraint(one_of("source", Source), name="source"),
        Index("ix_jobs_status_created_at", "status", "created_at"),
        Index("ix_jobs_labels", "labels", postgresql_using="gin"),
    )

    job_id: Mapped[str] = mapped_column(primary_key=True)
    status: Mapped[str]
    reason: Mapped[str | None]
    request: Mapped[dict[str, Any] | None]
    parent_job_id: Mapped[str | None] = mapped_column(index=True)
    from_clip: Mapped[int | None]
    preset: Mapped[str | None]
    priority: Mapped[str] = mapped_column(server_default=text(f"'{DEFAULT_PRIORITY}'"), default=None)
    labels: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'"), default=None)
    source: Mapped[str | None]
    dag_run_id: Mapped[str | None]
    num_clip: Mapped[int | None]
    num_frames: Mapped[int | None]
    width: Mapped[int | None]
    height: Mapped[int | None]
    estimated_gpu_seconds: Mapped[float | None]
    gpu: Mapped[str | None]
    cost_per_gpu_hour: Mapped[float | None]
    currency: Mapped[str | None]
    video_uri: Mapped[str | None]
    sha256: Mapped[str | None]
    cancel_requested_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now(), index=True, default=None)
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now(), onupdate=func.now(), default=None)
    # Not columns: only `MetadataStore.jobs.get` sets them.
    clips: tuple["Clip", ...] = ()
    attempts: tuple["Attempt", ...] = ()
    artifacts: tuple["ArtifactRow", ...] = ()
    events: tuple["Event", ...] = ()
    approvals: tuple["Approval", ...] = ()

    @property
    def has_ended(self) -> bool:
        """Return True if the job succeeded, failed or was cancelled."""
        return self.status in ENDED_STATUSES

    @property
    def waiting_approval(self) -> "Approval | None":
        """Return the approval that the job waits for; None if it waits for none."""
        waiting = [approval for approval in self.approvals if approval.status == ApprovalStatus.WAITING]
        return waiting[-1] if waiting and not self.has_ended else None

    @property
    def exit_code(self) -> int:
        """Return the exit code of a command that waited for this job, a result of `MetadataStore.jobs.get`.

        0: succeeded; 130: cancelled; otherwise the code of the step that failed last, or 75 without one.
        """
        if self.status == JobStatus.SUCCEEDED:
            return 0
        if self.status == JobStatus.CANCELLED:
            return CANCELLED_EXIT_CODE
        codes = [int(event.detail["exit_code"]) for event in self.events if event.is_failure_of_work]
        return codes[-1] if codes and codes[-1] in _STEP_EXIT_CODES else TransientError.exit_code


class Clip(Base, kw_only=True):
    """One clip of a job. `progress_step` of `progress_steps` solver steps are done; the frames are half open.

    `attempts`: number of renderings that were started. `facts`: facts of the clip's manifest (PFLOP, MFU, peak memory,
    world size). `source_job_id`: the job that rendered the clip, if that is another job. `quality`: its takes, their
    measures and findings.
    """

    __tablename__ = "clips"
    __table_args__ = (CheckConstraint(one_of("status", ClipStatus), name="status"),)

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.job_id", ondelete="CASCADE"), primary_key=True)
    clip_index: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str]
    fingerprint: Mapped[str | None]
    start_frame: Mapped[int]
    end_frame: Mapped[int]
    attempts: Mapped[int] = mapped_column(server_default=text("0"), default=None)
    render_seconds: Mapped[float | None]
    progress_step: Mapped[int | None]
    progress_steps: Mapped[int | None]
    eta_seconds: Mapped[float | None]
    gpu_memory_bytes: Mapped[int | None] = mapped_column(BigInteger)
    reused: Mapped[bool] = mapped_column(server_default=text("false"), default=None)
    source_job_id: Mapped[str | None] = mapped_column(index=True)
    facts: Mapped[dict[str, Any] | None]
    quality: Mapped[dict[str, Any] | None]
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now(), onupdate=func.now(), default=None)

    @property
    def clip_facts(self) -> ClipFacts | None:
        """Return the facts as a model; None until the clip is rendered."""
        return None if self.facts is None else ClipFacts.model_validate(self.facts)

    @property
    def takes(self) -> TakeRecord | None:
        """Return the measured takes as a model, without the series of their frames; None if none was measured."""
        return None if self.quality is None else TakeRecord.model_validate(self.quality)


class Attempt(Base, kw_only=True):
    """One encoding or rendering that was started: `gpu_seconds` = duration x `world_size`, for every outcome.

    lost: the process did not report its end; the attempt counts until its last heartbeat. superseded: it made a take of
    the clip that is not kept; `fingerprint` names the take. There is no foreign key to clips: a new plan deletes clips
    but not their cost. Conditions belong to all clips and have no `clip_index`.
    """

    __tablename__ = "attempts"
    __table_args__ = (
        UniqueConstraint("job_id", "step", "clip_index", "attempt"),
        CheckConstraint(one_of("step", [step.name for step in HEAVY_STEPS]), name="step"),
        CheckConstraint(f"(step = '{RENDER_CLIP.name}') = (clip_index IS NOT NULL)", name="clip_index"),
        CheckConstraint(one_of("outcome", AttemptOutcome), name="outcome"),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True, default=None)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.job_id", ondelete="CASCADE"))
    step: Mapped[str] = mapped_column(server_default=text(f"'{RENDER_CLIP.name}'"), default=None)
    clip_index: Mapped[int | None]
    attempt: Mapped[int]
    started_at: Mapped[datetime] = mapped_column(server_default=func.now(), index=True, default=None)
    finished_at: Mapped[datetime | None]
    outcome: Mapped[str] = mapped_column(server_default=text(f"'{AttemptOutcome.RUNNING}'"), default=None)
    gpu_seconds: Mapped[float | None]
    world_size: Mapped[int]
    reason: Mapped[str | None]
    fingerprint: Mapped[str | None]
    node: Mapped[str | None]


class ArtifactRow(Base, kw_only=True):
    """One stored object of a job, the step that made it, and the fingerprint of its inputs."""

    __tablename__ = "artifacts"

    key: Mapped[str] = mapped_column(primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.job_id", ondelete="CASCADE"), index=True)
    step: Mapped[str]
    fingerprint: Mapped[str | None] = mapped_column(index=True)
    sha256: Mapped[str]
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now(), onupdate=func.now(), default=None)


class Event(Base, kw_only=True):
    """One event. There is no foreign key to jobs: events of a job that was never accepted are kept too."""

    __tablename__ = "events"
    __table_args__ = (Index("ix_events_job_id_id", "job_id", "id"),)

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True, default=None)
    job_id: Mapped[str]
    clip_index: Mapped[int | None]
    step: Mapped[str | None]
    event: Mapped[str]
    detail: Mapped[dict[str, Any]]
    at: Mapped[datetime] = mapped_column(server_default=func.now(), default=None)

    @property
    def is_failure_of_work(self) -> bool:
        """Return True if a step failed, other than the one that closes a job for the failure of another."""
        return self.event == JobEvent.STEP_FAILED and self.step != CLOSE_JOB.name


class Approval(Base, kw_only=True):
    """One question to people about a clip, or about the whole video (`clip_index` is empty), and its answer.

    `fingerprint` is that of the clip, or the SHA-256 of the video: an approval holds for these bytes. `rejection`: the
    note and the changed fields; `next_job_id`: the job that renders the clips again.
    """

    __tablename__ = "approvals"
    __table_args__ = (CheckConstraint(one_of("status", ApprovalStatus), name="status"),)

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True, default=None)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.job_id", ondelete="CASCADE"), index=True)
    clip_index: Mapped[int | None]
    fingerprint: Mapped[str]
    dag_run_id: Mapped[str | None]
    status: Mapped[str]
    decided_by: Mapped[str | None]
    rejection: Mapped[dict[str, Any] | None]
    next_job_id: Mapped[str | None]
    requested_at: Mapped[datetime] = mapped_column(server_default=func.now(), default=None)
    expires_at: Mapped[datetime]
    decided_at: Mapped[datetime | None]


class Notification(Base, kw_only=True):
    """One message to a webhook. It is stored before it is sent (transactional outbox)."""

    __tablename__ = "notifications"
    __table_args__ = (
        CheckConstraint(one_of("status", NOTIFICATION_STATUSES), name="status"),
        Index("ix_notifications_due", "next_attempt_at", postgresql_where=text("status = 'pending'")),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True, default=None)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.job_id", ondelete="CASCADE"), index=True)
    clip_index: Mapped[int | None]
    event: Mapped[str]
    url: Mapped[str]
    payload: Mapped[dict[str, Any]]
    status: Mapped[str] = mapped_column(server_default=text("'pending'"), default=None)
    attempts: Mapped[int] = mapped_column(server_default=text("0"), default=None)
    last_error: Mapped[str | None]
    next_attempt_at: Mapped[datetime | None] = mapped_column(server_default=func.now(), default=None)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now(), default=None)
    delivered_at: Mapped[datetime | None]
