"""Airflow plugin: release the locks of a killed scheduler in Airflow's database.

Workers of LocalExecutor are forks of the scheduler and inherit its connections. A worker that survives a killed
scheduler keeps its transaction open. The next scheduler skips the runs whose rows are locked, so they never end.
PostgreSQL therefore ends such a transaction.
"""

import sys
from typing import Any, ClassVar

from airflow import settings
from airflow.listeners import hookimpl
from airflow.plugins_manager import AirflowPlugin

# Longer than Airflow is ever idle in a transaction, even on an overloaded machine.
IDLE_SECONDS = 120


@hookimpl  # type: ignore[untyped-decorator]
def on_starting(component: Any) -> None:
    """Limit idle transactions on each connection of a scheduler, triggerer or DAG processor that starts."""
    # Airflow also calls this for tasks, which have no connection to its database.
    if type(component).__name__ != "Job" or settings.engine is None or settings.engine.dialect.name != "postgresql":
        return
    from sqlalchemy import event

    if not event.contains(settings.engine, "connect", limit_idle_transactions):
        event.listen(settings.engine, "connect", limit_idle_transactions)
        settings.engine.dispose()  # connections that are already open


def limit_idle_transactions(connection: Any, _record: Any) -> None:
    """Let PostgreSQL end a session that is idle in a transaction for too long."""
    with connection.cursor() as cursor:
        cursor.execute(f"SET idle_in_transaction_session_timeout = '{IDLE_SECONDS}s'")
    connection.commit()


class IdleTransactionsPlugin(AirflowPlugin):  # type: ignore[misc]
    """Registers the listener."""

    name = "s2v_idle_transactions"
    listeners: ClassVar[list[Any]] = [sys.modules[__name__]]
