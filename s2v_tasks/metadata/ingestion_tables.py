"""The tables of drops and batches, in the form of those in `tables.py`."""

from datetime import datetime
from typing import Any

from sqlalchemy import CheckConstraint, ForeignKey, Index, func, text
from sqlalchemy.orm import Mapped, mapped_column

from s2v_tasks.metadata.tables import Base, one_of

DROP_STATUSES = ("claimed", "accepted", "refused", "rejected")
BATCH_STATUSES = ("running", "finished")


class Drop(Base, kw_only=True):
    """One dropped folder with exactly these files. The row is the claim of a sweep.

    Statuses: claimed → accepted, or refused → rejected. The first of each pair means that files are being moved from
    `folder_uri` to `target_uri`. `files`: name in the folder → {etag, size_bytes, target name}.
    """

    __tablename__ = "drops"
    __table_args__ = (
        CheckConstraint(one_of("status", DROP_STATUSES), name="status"),
        Index("ix_drops_status_created_at", "status", "created_at"),
    )

    drop_id: Mapped[str] = mapped_column(primary_key=True)
    folder_uri: Mapped[str] = mapped_column(index=True)
    target_uri: Mapped[str] = mapped_column(unique=True)
    etag: Mapped[str]
    files: Mapped[dict[str, Any]]
    job_id: Mapped[str | None] = mapped_column(unique=True)
    status: Mapped[str]
    error: Mapped[dict[str, Any] | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now(), default=None)
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now(), onupdate=func.now(), default=None)


class Batch(Base, kw_only=True):
    """One version of a batch manifest, in which every row is valid."""

    __tablename__ = "batches"
    __table_args__ = (
        CheckConstraint(one_of("status", BATCH_STATUSES), name="status"),
        Index("ix_batches_manifest_uri_created_at", "manifest_uri", "created_at"),
    )

    batch_id: Mapped[str] = mapped_column(primary_key=True)
    manifest_uri: Mapped[str]
    etag: Mapped[str]
    num_rows: Mapped[int]
    status: Mapped[str] = mapped_column(server_default=text("'running'"), default=None)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now(), default=None)
    finished_at: Mapped[datetime | None]
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now(), onupdate=func.now(), default=None)


class BatchRow(Base, kw_only=True):
    """One row of a manifest and its job; equal rows of two versions of a manifest have the same job."""

    __tablename__ = "batch_rows"

    batch_id: Mapped[str] = mapped_column(ForeignKey("batches.batch_id", ondelete="CASCADE"), primary_key=True)
    row_number: Mapped[int] = mapped_column(primary_key=True)
    row_id: Mapped[str | None]
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.job_id", ondelete="CASCADE"), index=True)
