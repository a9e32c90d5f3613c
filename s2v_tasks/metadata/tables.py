"""The tables of the project's own database (docs/architecture.md). Times are timestamptz, written as UTC."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, CheckConstraint, DateTime, ForeignKey, Identity, Index, MetaData, func, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

JOB_STATUSES = ("queued", "running", "succeeded", "failed")
CLIP_STATUSES = ("pending", "rendering", "succeeded", "failed")


class Base(DeclarativeBase):
    """Names of constraints follow one pattern, so that migrations can refer to them."""

    metadata = MetaData(
        naming_convention={
            "pk": "pk_%(table_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "ix": "ix_%(table_name)s_%(column_0_name)s",
        }
    )
    type_annotation_map = {datetime: DateTime(timezone=True), dict[str, Any]: JSONB}  # noqa: RUF012 - SQLAlchemy's


class Job(Base):
    """One talking video. The plan's columns are empty until it is planned."""

    __tablename__ = "jobs"
    __table_args__ = (CheckConstraint(f"status IN {JOB_STATUSES}", name="status"),)

    job_id: Mapped[str] = mapped_column(primary_key=True)
    status: Mapped[str]
    reason: Mapped[str | None]
    request: Mapped[dict[str, Any] | None]
    num_clip: Mapped[int | None]
    num_frames: Mapped[int | None]
    width: Mapped[int | None]
    height: Mapped[int | None]
    estimated_gpu_seconds: Mapped[float | None]
    video_uri: Mapped[str | None]
    sha256: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now(), index=True)
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Clip(Base):
    """One clip of a job. `progress_step` of `progress_steps` solver steps are done; attempts count renderings begun.

    `facts` are those of its manifest: what the rendering cost, and on what.
    """

    __tablename__ = "clips"
    __table_args__ = (CheckConstraint(f"status IN {CLIP_STATUSES}", name="status"),)

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.job_id", ondelete="CASCADE"), primary_key=True)
    clip_index: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str]
    fingerprint: Mapped[str | None]
    start_frame: Mapped[int]
    end_frame: Mapped[int]
    attempts: Mapped[int] = mapped_column(server_default=text("0"))
    render_seconds: Mapped[float | None]
    progress_step: Mapped[int | None]
    progress_steps: Mapped[int | None]
    reused: Mapped[bool] = mapped_column(server_default=text("false"))
    facts: Mapped[dict[str, Any] | None]
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now())


class ArtifactRow(Base):
    """One stored object of a job and the step that made it."""

    __tablename__ = "artifacts"

    key: Mapped[str] = mapped_column(primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.job_id", ondelete="CASCADE"), index=True)
    step: Mapped[str]
    sha256: Mapped[str]
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Event(Base):
    """What happened, in order. Refers to no job row: what befell a job that was never accepted is worth knowing too."""

    __tablename__ = "events"
    __table_args__ = (Index("ix_events_job_id_id", "job_id", "id"),)

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    job_id: Mapped[str]
    clip_index: Mapped[int | None]
    step: Mapped[str | None]
    event: Mapped[str]
    detail: Mapped[dict[str, Any]]
    at: Mapped[datetime] = mapped_column(server_default=func.now())
