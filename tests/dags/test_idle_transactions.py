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
    """The same for a task."""


@pytest.fixture
def airflow_engine(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[sa.Engine]:
    """The engine of a process of Airflow, with a connection that is open already."""
    engine = create_engine(postgres_url)
    monkeypatch.setattr(settings, "engine", engine)
    limit(engine)
    yield engine
    engine.dispose()


def limit(engine: sa.Engine) -> str:
    with engine.connect() as connection:
        return str(connection.execute(sa.text("SHOW idle_in_transaction_session_timeout")).scalar_one())


def start(component: object) -> None:
    """Start it as Airflow does, with the listeners of the plugin."""
    manager = pluggy.PluginManager("airflow")
    manager.add_hookspecs(lifecycle)
    for listener in IdleTransactionsPlugin.listeners:
        manager.register(listener)
    manager.hook.on_starting(component=component)


def test_postgresql_ends_a_transaction_that_a_killed_scheduler_left_open(airflow_engine: sa.Engine) -> None:
    """On each connection, those that were open before too; its locks go with it, and the next scheduler goes on."""
    before = limit(airflow_engine)
    start(TaskRunnerMarker())
    assert limit(airflow_engine) == before != "2min"
    for _ in range(2):
        start(Job())
        assert limit(airflow_engine) == "2min"


def test_the_row_that_it_had_locked_is_free_again(airflow_engine: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that nobody closes, because a worker has inherited it, is ended by the server."""
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
    """SQLite knows no such setting, and a process without a database has no engine."""
    engine = sa.create_engine("sqlite://")
    for value in (engine, None):
        monkeypatch.setattr(settings, "engine", value)
        start(Job())
    with engine.connect() as connection:
        assert connection.execute(sa.text("SELECT 1")).scalar_one() == 1
    engine.dispose()
