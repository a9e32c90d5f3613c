"""Attempts to encode conditions, which belong to no clip; artifacts are found by what they are made from."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.drop_constraint("pk_attempts", "attempts")
    op.add_column("attempts", sa.Column("id", sa.BigInteger, sa.Identity(always=True), nullable=False))
    op.create_primary_key("pk_attempts", "attempts", ["id"])
    op.add_column("attempts", sa.Column("step", sa.String, nullable=False, server_default="render_clip"))
    op.alter_column("attempts", "clip_index", nullable=True)
    op.create_check_constraint(op.f("ck_attempts_step"), "attempts", "step IN ('encode_conditions', 'render_clip')")
    op.create_check_constraint(
        op.f("ck_attempts_clip_index"), "attempts", "(step = 'render_clip') = (clip_index IS NOT NULL)"
    )
    op.create_unique_constraint("uq_attempts_job_id", "attempts", ["job_id", "step", "clip_index", "attempt"])
    op.add_column("artifacts", sa.Column("fingerprint", sa.String))
    op.create_index("ix_artifacts_fingerprint", "artifacts", ["fingerprint"])


def downgrade() -> None:
    op.drop_index("ix_artifacts_fingerprint", "artifacts")
    op.drop_column("artifacts", "fingerprint")
    op.drop_constraint("uq_attempts_job_id", "attempts")
    op.drop_constraint(op.f("ck_attempts_clip_index"), "attempts")
    op.drop_constraint(op.f("ck_attempts_step"), "attempts")
    op.drop_constraint("pk_attempts", "attempts")
    # The old schema has no place for them.
    op.execute("DELETE FROM attempts WHERE clip_index IS NULL")
    op.alter_column("attempts", "clip_index", nullable=False)
    op.drop_column("attempts", "step")
    op.drop_column("attempts", "id")
    op.create_primary_key("pk_attempts", "attempts", ["job_id", "clip_index", "attempt"])
