"""Measured takes of a clip; attempts at takes that are not kept."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_BEFORE = "'running', 'succeeded', 'failed', 'interrupted', 'lost'"


def upgrade() -> None:
    op.add_column("clips", sa.Column("quality", JSONB))
    op.add_column("attempts", sa.Column("fingerprint", sa.String))
    _check_outcomes(f"{_BEFORE}, 'superseded'")


def downgrade() -> None:
    # The old schema has no word for them, and they were paid for.
    op.execute("UPDATE attempts SET outcome = 'failed' WHERE outcome = 'superseded'")
    _check_outcomes(_BEFORE)
    op.drop_column("attempts", "fingerprint")
    op.drop_column("clips", "quality")


def _check_outcomes(outcomes: str) -> None:
    op.drop_constraint(op.f("ck_attempts_outcome"), "attempts")
    op.create_check_constraint(op.f("ck_attempts_outcome"), "attempts", f"outcome IN ({outcomes})")
