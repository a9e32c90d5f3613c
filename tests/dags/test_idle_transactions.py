"""Check that a killed scheduler leaves no lock in the database of Airflow."""

from collections.abc import Iterator

import pluggy
import pytest
import sqlalchemy as sa
from airflow import settings
from airflow._shared.listeners.spec import lifecycle

from s2v_tasks.metadata.session import create_engine
from s2v_tasks.orchestration import idle_transactions
from s2v_tasks.orchestration.idle_transactions import IdleTransactionsPlugin


class Job:
    """A component that Airflow passes to a listener: a scheduler, a triggerer or a DAG processor."""


class TaskRunnerMarker:
    """The marker that Airflow passes to a listener for a task runner."""


@pytest.fixture
def airflow_engine(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[sa.Engine]:
    """The engine of an Airflow process, with a connection that is already open."""
    engine = create_engine(postgres_url)
    monkeypatch.setattr(settings, "engine", engine)
    limit(engine)
    yield engine
    engine.dispose()


def limit(engine: sa.Engine) -> str:
    with engine.connect() as connection:
        return str(connection.execute(sa.text("SHOW idle_in_transaction_session_timeout")).scalar_one())


def start(component: object) -> None:
    """Start the component as Airflow does, with the listeners of the plugin."""
    manager = pluggy.PluginManager("airflow")
    manager.add_hookspecs(lifecycle)
    for listener in IdleTransactionsPlugin.listeners:
        manager.register(listener)
    manager.hook.on_starting(component=component)


def test_idle_transactions_of_a_scheduler_have_a_time_limit(airflow_engine: sa.Engine) -> None:
    """Connections of a scheduler, also those opened earlier, end an idle transaction after two minutes."""
    before = limit(airflow_engine)
    start(TaskRunnerMarker())
    assert limit(airflow_engine) == before != "2min"
    for _ in range(2):
        start(Job())
        assert limit(airflow_engine) == "2min"


def test_the_lock_of_an_inherited_connection_is_released(
    airflow_engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server ends a connection that nobody closes, because a worker process has inherited it."""
    monkeypatch.setattr(idle_transactions, "IDLE_SECONDS", 1)
    start(Job())
    with airflow_engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE dag_run AS SELECT 1 AS id"))
    left_open = airflow_engine.connect()
    left_open.execute(sa.text("SELECT id FROM dag_run FOR UPDATE"))
    with airflow_engine.begin() as connection:
        assert connection.execute(sa.text("SELECT id FROM dag_run FOR UPDATE")).all() == [
            (1,)
        ]  # waits until it is free
    left_open.invalidate()
    left_open.close()


def test_another_database_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is set for SQLite, nor in a process without a database engine."""
    engine = sa.create_engine("sqlite://")
    for value in (engine, None):
        monkeypatch.setattr(settings, "engine", value)
        start(Job())
    with engine.connect() as connection:
        assert connection.execute(sa.text("SELECT 1")).scalar_one() == 1
    engine.dispose()
