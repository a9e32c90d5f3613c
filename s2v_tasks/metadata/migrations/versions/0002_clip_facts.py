"""Cost of the rendering of a clip."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("clips", sa.Column("facts", JSONB))


def downgrade() -> None:
    op.drop_column("clips", "facts")
