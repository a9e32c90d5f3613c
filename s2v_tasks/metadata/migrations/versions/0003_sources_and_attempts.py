"""Parents, labels, prices, cancellation; attempts, drops, batches, notifications."""

from datetime import datetime
from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_STATUSES = "'queued', 'running', 'succeeded', 'failed'"


def _job_columns() -> tuple[sa.Column[Any], ...]:
    return (
    sa.Column("parent_job_id", sa.String),
    sa.Column("from_clip", sa.Integer),
    sa.Column("preset", sa.String),
    sa.Column("priority", sa.String, nullable=False, server_default="normal"),
    sa.Column("labels", JSONB, nullable=False, server_default="{}"),
    sa.Column("source", sa.String),
    sa.Column("dag_run_id", sa.String),
    sa.Column("gpu", sa.String),
    sa.Column("cost_per_gpu_hour", sa.Float),
    sa.Column("currency", sa.String),
    sa.Column("cancel_requested_at", sa.DateTime(timezone=True)),
)


def _clip_columns() -> tuple[sa.Column[Any], ...]:
    return (
    sa.Column("eta_seconds", sa.Float),
    sa.Column("gpu_memory_bytes", sa.BigInteger),
    sa.Column("source_job_id", sa.String),
)


def _time(name: str, *, nullable: bool = False, default: bool | None = None) -> sa.Column[datetime]:
    now = sa.func.now() if (not nullable if default is None else default) else None
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable, server_default=now)


def _of_job(table: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(["job_id"], ["jobs.job_id"], name=f"fk_{table}_job_id_jobs", ondelete="CASCADE")


def upgrade() -> None:
    for column in _job_columns():
        op.add_column("jobs", column)
    op.drop_constraint(op.f("ck_jobs_status"), "jobs")
    op.create_check_constraint(op.f("ck_jobs_status"), "jobs", f"status IN ({_STATUSES}, 'cancelled')")
    op.create_check_constraint(op.f("ck_jobs_priority"), "jobs", "priority IN ('low', 'normal', 'high')")
    op.create_check_constraint(
        op.f("ck_jobs_source"), "jobs", "source IN ('ui', 'cli', 'drop', 'batch', 'rerun', 'api')"
    )
    op.create_index("ix_jobs_status_created_at", "jobs", ["status", "created_at"])
    op.create_index("ix_jobs_parent_job_id", "jobs", ["parent_job_id"])
    op.create_index("ix_jobs_labels", "jobs", ["labels"], postgresql_using="gin")
    for column in _clip_columns():
        op.add_column("clips", column)
    op.create_index("ix_clips_source_job_id", "clips", ["source_job_id"])
    _create_attempts()
    _create_ingestion()
    _create_notifications()


def _create_attempts() -> None:
    op.create_table(
        "attempts",
        sa.Column("job_id", sa.String, nullable=False),
        sa.Column("clip_index", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("attempt", sa.Integer, nullable=False, autoincrement=False),
        _time("started_at"),
        _time("finished_at", nullable=True),
        sa.Column("outcome", sa.String, nullable=False, server_default="running"),
        sa.Column("gpu_seconds", sa.Float),
        sa.Column("world_size", sa.Integer, nullable=False),
        sa.Column("reason", sa.String),
        sa.PrimaryKeyConstraint("job_id", "clip_index", "attempt", name="pk_attempts"),
        _of_job("attempts"),
        sa.CheckConstraint(
            "outcome IN ('running', 'succeeded', 'failed', 'interrupted', 'lost')", name=op.f("ck_attempts_outcome")
        ),
    )
    op.create_index("ix_attempts_started_at", "attempts", ["started_at"])


def _create_ingestion() -> None:
    op.create_table(
        "drops",
        sa.Column("drop_id", sa.String, nullable=False),
        sa.Column("folder_uri", sa.String, nullable=False),
        sa.Column("target_uri", sa.String, nullable=False),
        sa.Column("etag", sa.String, nullable=False),
        sa.Column("files", JSONB, nullable=False),
        sa.Column("job_id", sa.String),
        sa.Column("status", sa.String, nullable=False),
        sa.Column("error", JSONB),
        _time("created_at"),
        _time("updated_at"),
        sa.PrimaryKeyConstraint("drop_id", name="pk_drops"),
        sa.UniqueConstraint("job_id", name="uq_drops_job_id"),
        sa.UniqueConstraint("target_uri", name="uq_drops_target_uri"),
        sa.CheckConstraint("status IN ('claimed', 'accepted', 'refused', 'rejected')", name=op.f("ck_drops_status")),
    )
    op.create_index("ix_drops_folder_uri", "drops", ["folder_uri"])
    op.create_index("ix_drops_status_created_at", "drops", ["status", "created_at"])
    op.create_table(
        "batches",
        sa.Column("batch_id", sa.String, nullable=False),
        sa.Column("manifest_uri", sa.String, nullable=False),
        sa.Column("etag", sa.String, nullable=False),
        sa.Column("num_rows", sa.Integer, nullable=False),
        sa.Column("status", sa.String, nullable=False, server_default="running"),
        _time("created_at"),
        _time("finished_at", nullable=True),
        _time("updated_at"),
        sa.PrimaryKeyConstraint("batch_id", name="pk_batches"),
        sa.CheckConstraint("status IN ('running', 'finished')", name=op.f("ck_batches_status")),
    )
    op.create_index("ix_batches_manifest_uri_created_at", "batches", ["manifest_uri", "created_at"])
    op.create_table(
        "batch_rows",
        sa.Column("batch_id", sa.String, nullable=False),
        sa.Column("row_number", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("row_id", sa.String),
        sa.Column("job_id", sa.String, nullable=False),
        sa.PrimaryKeyConstraint("batch_id", "row_number", name="pk_batch_rows"),
        sa.ForeignKeyConstraint(
            ["batch_id"], ["batches.batch_id"], name="fk_batch_rows_batch_id_batches", ondelete="CASCADE"
        ),
        _of_job("batch_rows"),
    )
    op.create_index("ix_batch_rows_job_id", "batch_rows", ["job_id"])


def _create_notifications() -> None:
    op.create_table(
        "notifications",
        sa.Column("id", sa.BigInteger, sa.Identity(always=True), nullable=False),
        sa.Column("job_id", sa.String, nullable=False),
        sa.Column("clip_index", sa.Integer),
        sa.Column("event", sa.String, nullable=False),
        sa.Column("url", sa.String, nullable=False),
        sa.Column("payload", JSONB, nullable=False),
        sa.Column("status", sa.String, nullable=False, server_default="pending"),
        sa.Column("attempts", sa.Integer, nullable=False, server_default=sa.text("0")),
        sa.Column("last_error", sa.String),
        _time("next_attempt_at", nullable=True, default=True),
        _time("created_at"),
        _time("delivered_at", nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_notifications"),
        _of_job("notifications"),
        sa.CheckConstraint(
            "status IN ('pending', 'delivered', 'failed', 'refused')", name=op.f("ck_notifications_status")
        ),
    )
    op.create_index("ix_notifications_job_id", "notifications", ["job_id"])
    op.create_index(
        "ix_notifications_due", "notifications", ["next_attempt_at"], postgresql_where=sa.text("status = 'pending'")
    )


def downgrade() -> None:
    for table in ("notifications", "batch_rows", "batches", "drops", "attempts"):
        op.drop_table(table)
    op.drop_index("ix_clips_source_job_id", "clips")
    for column in _clip_columns():
        op.drop_column("clips", column.name)
    for index in ("ix_jobs_labels", "ix_jobs_parent_job_id", "ix_jobs_status_created_at"):
        op.drop_index(index, "jobs")
    for check in ("ck_jobs_source", "ck_jobs_priority", "ck_jobs_status"):
        op.drop_constraint(op.f(check), "jobs")
    # The old schema has no word for it.
    op.execute("UPDATE jobs SET status = 'failed' WHERE status = 'cancelled'")
    op.create_check_constraint(op.f("ck_jobs_status"), "jobs", f"status IN ({_STATUSES})")
    for column in _job_columns():
        op.drop_column("jobs", column.name)
