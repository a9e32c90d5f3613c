"""Alembic's entry point: migrate over the connection (and in the transaction) that migrate.py opened."""

from alembic import context

from s2v_tasks.metadata import ingestion_tables  # noqa: F401  (registers its tables)
from s2v_tasks.metadata.tables import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    compare_type=True,
    compare_server_default=True,
)
with context.begin_transaction():
    context.run_migrations()
