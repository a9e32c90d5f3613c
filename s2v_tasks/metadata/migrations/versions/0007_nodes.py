"""The machine of an attempt."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("attempts", sa.Column("node", sa.String))


def downgrade() -> None:
    op.drop_column("attempts", "node")
