"""Migrations: forth, back, and by several processes at once."""

import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from s2v_tasks.embedded.postgres import PostgresServer
from s2v_tasks.errors import ConfigurationError
from s2v_tasks.metadata import migrate


@pytest.fixture
def empty_url(postgres_server: PostgresServer) -> Iterator[str]:
    """The URL of a database without tables."""
    name = f"empty_{uuid.uuid4().hex}"
    yield postgres_server.ensure_database(name)
    with psycopg.connect(postgres_server.url("postgres"), autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


def tables(url: str) -> set[str]:
    with psycopg.connect(url) as connection:
        rows = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
    return {row[0] for row in rows}


def test_a_database_goes_up_and_down_and_up_again(empty_url: str) -> None:
    """Each migration has a way back, and the tables are exactly those of the package."""
    with pytest.raises(ConfigurationError, match="s2v db upgrade"):
        migrate.check(empty_url)
    migrate.upgrade(empty_url)
    migrate.check(empty_url)
    assert {"jobs", "clips", "attempts", "artifacts", "events", "drops", "batches"} < tables(empty_url)
    migrate.downgrade(empty_url, "base")
    assert tables(empty_url) == {"alembic_version"}
    migrate.upgrade(empty_url)
    migrate.check(empty_url)


def test_the_way_back_keeps_what_the_older_schema_can_hold(empty_url: str) -> None:
    """Attempts at clips stay, those at conditions go; a cancelled job, for which there is no word, is a failed one."""
    migrate.upgrade(empty_url)
    with psycopg.connect(empty_url) as connection:
        connection.execute("INSERT INTO jobs (job_id, status) VALUES ('job-1', 'cancelled'), ('job-2', 'queued')")
        for step, clip_index in (("encode_conditions", None), ("render_clip", 0), ("render_clip", 1)):
            row = (step, clip_index)
            connection.execute(
                "INSERT INTO attempts (job_id, step, clip_index, attempt, world_size) VALUES ('job-1', %s, %s, 1, 1)",
                row,
            )
    migrate.downgrade(empty_url, "0003")
    with psycopg.connect(empty_url) as connection:
        clips = connection.execute("SELECT clip_index FROM attempts ORDER BY clip_index").fetchall()
    assert clips == [(0,), (1,)]
    migrate.upgrade(empty_url)
    migrate.downgrade(empty_url, "0002")
    with psycopg.connect(empty_url) as connection:
        rows = connection.execute("SELECT job_id, status FROM jobs ORDER BY job_id").fetchall()
    assert rows == [("job-1", "failed"), ("job-2", "queued")]


def test_a_table_that_differs_from_the_package_is_found(postgres_url: str) -> None:
    """A column that somebody added by hand fails the check."""
    with psycopg.connect(postgres_url) as connection:
        connection.execute("ALTER TABLE jobs ADD COLUMN extra text")
    with pytest.raises(ConfigurationError, match="extra"):
        migrate.check(postgres_url)


def test_processes_that_upgrade_at_once_wait_for_each_other(empty_url: str) -> None:
    """Of several upgrades at the same time one works and the others find the work done."""
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(migrate.upgrade, [empty_url] * 4))
    migrate.check(empty_url)
