"""Jobs, clips, artifacts, events."""

from datetime import datetime

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def _time(name: str, *, nullable: bool = False) -> sa.Column[datetime]:
    default = None if nullable else sa.func.now()
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable, server_default=default)


def upgrade() -> None:
    op.create_table(
        "jobs",
        sa.Column("job_id", sa.String, nullable=False),
        sa.Column("status", sa.String, nullable=False),
        sa.Column("reason", sa.String),
        sa.Column("request", JSONB),
        sa.Column("num_clip", sa.Integer),
        sa.Column("num_frames", sa.Integer),
        sa.Column("width", sa.Integer),
        sa.Column("height", sa.Integer),
        sa.Column("estimated_gpu_seconds", sa.Float),
        sa.Column("video_uri", sa.String),
        sa.Column("sha256", sa.String),
        _time("created_at"),
        _time("started_at", nullable=True),
        _time("finished_at", nullable=True),
        _time("updated_at"),
        sa.PrimaryKeyConstraint("job_id", name="pk_jobs"),
        sa.CheckConstraint("status IN ('queued', 'running', 'succeeded', 'failed')", name=op.f("ck_jobs_status")),
    )
    op.create_index("ix_jobs_created_at", "jobs", ["created_at"])
    op.create_table(
        "clips",
        sa.Column("job_id", sa.String, nullable=False),
        sa.Column("clip_index", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("status", sa.String, nullable=False),
        sa.Column("fingerprint", sa.String),
        sa.Column("start_frame", sa.Integer, nullable=False),
        sa.Column("end_frame", sa.Integer, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False, server_default=sa.text("0")),
        sa.Column("render_seconds", sa.Float),
        sa.Column("progress_step", sa.Integer),
        sa.Column("progress_steps", sa.Integer),
        sa.Column("reused", sa.Boolean, nullable=False, server_default=sa.text("false")),
        _time("updated_at"),
        sa.PrimaryKeyConstraint("job_id", "clip_index", name="pk_clips"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.job_id"], name="fk_clips_job_id_jobs", ondelete="CASCADE"),
        sa.CheckConstraint("status IN ('pending', 'rendering', 'succeeded', 'failed')", name=op.f("ck_clips_status")),
    )
    op.create_table(
        "artifacts",
        sa.Column("key", sa.String, nullable=False),
        sa.Column("job_id", sa.String, nullable=False),
        sa.Column("step", sa.String, nullable=False),
        sa.Column("sha256", sa.String, nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        _time("updated_at"),
        sa.PrimaryKeyConstraint("key", name="pk_artifacts"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.job_id"], name="fk_artifacts_job_id_jobs", ondelete="CASCADE"),
    )
    op.create_index("ix_artifacts_job_id", "artifacts", ["job_id"])
    op.create_table(
        "events",
        sa.Column("id", sa.BigInteger, sa.Identity(always=True), nullable=False),
        sa.Column("job_id", sa.String, nullable=False),
        sa.Column("clip_index", sa.Integer),
        sa.Column("step", sa.String),
        sa.Column("event", sa.String, nullable=False),
        sa.Column("detail", JSONB, nullable=False),
        _time("at"),
        sa.PrimaryKeyConstraint("id", name="pk_events"),
    )
    op.create_index("ix_events_job_id_id", "events", ["job_id", "id"])


def downgrade() -> None:
    for table in ("events", "artifacts", "clips", "jobs"):
        op.drop_table(table)
