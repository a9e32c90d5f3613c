"""Approvals of clips and videos by people."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    now = sa.func.now()
    op.create_table(
        "approvals",
        sa.Column("id", sa.BigInteger, sa.Identity(always=True), nullable=False),
        sa.Column("job_id", sa.String, nullable=False),
        sa.Column("clip_index", sa.Integer),
        sa.Column("fingerprint", sa.String, nullable=False),
        sa.Column("dag_run_id", sa.String),
        sa.Column("status", sa.String, nullable=False),
        sa.Column("decided_by", sa.String),
        sa.Column("rejection", JSONB),
        sa.Column("next_job_id", sa.String),
        sa.Column("requested_at", sa.DateTime(timezone=True), server_default=now, nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("decided_at", sa.DateTime(timezone=True)),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_approvals")),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.job_id"], name=op.f("fk_approvals_job_id_jobs"), ondelete="CASCADE"
        ),
        sa.CheckConstraint(
            "status IN ('waiting', 'approved', 'rejected', 'expired', 'withdrawn')", name=op.f("ck_approvals_status")
        ),
    )
    op.create_index(op.f("ix_approvals_job_id"), "approvals", ["job_id"])


def downgrade() -> None:
    op.drop_table("approvals")
