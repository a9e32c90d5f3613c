"""Check migrations up, down, and by several processes at once."""

import re
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote

import psycopg
import pytest
import sqlalchemy as sa

from s2v_tasks.cli.installation import db_upgrade
from s2v_tasks.embedded.postgres import PostgresServer
from s2v_tasks.errors import ConfigurationError, PermanentError
from s2v_tasks.metadata import migrate
from s2v_tasks.metadata.tables import Base
from s2v_tasks.settings import load_settings


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


def revision_of(url: str) -> str:
    with psycopg.connect(url) as connection:
        ((revision,),) = connection.execute("SELECT version_num FROM alembic_version").fetchall()
    return str(revision)


def test_a_database_goes_up_and_down_and_up_again(empty_url: str) -> None:
    """Each migration can be reverted, and the tables are exactly those of the package."""
    with pytest.raises(ConfigurationError, match="s2v db upgrade"):
        migrate.check(empty_url)
    migrate.upgrade(empty_url)
    migrate.check(empty_url)
    assert {"jobs", "clips", "attempts", "artifacts", "events", "drops", "batches"} < tables(empty_url)
    newest = revision_of(empty_url)
    migrate.downgrade(empty_url, "base")
    assert tables(empty_url) == {"alembic_version"}
    assert migrate.upgrade(empty_url) == newest
    migrate.check(empty_url)


def test_the_migrations_allow_the_values_of_the_package(empty_url: str) -> None:
    """Each check of a column allows the values of its type in the package; `alembic check` does not compare them."""

    def values(condition: object) -> list[str]:
        return sorted(re.findall(r"'([^']*)'", str(condition)))

    migrate.upgrade(empty_url)
    with psycopg.connect(empty_url) as connection:
        checks = "SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint WHERE contype = 'c' AND conrelid > 0"
        migrated = {name: values(condition) for name, condition in connection.execute(checks).fetchall()}
    constraints = [constraint for table in Base.metadata.sorted_tables for constraint in table.constraints]
    expected = {str(one.name): values(one.sqltext) for one in constraints if isinstance(one, sa.CheckConstraint)}
    assert "queued" in expected["ck_jobs_status"]
    assert migrated == expected


def test_a_downgrade_keeps_what_the_older_schema_can_hold(empty_url: str) -> None:
    """Attempts at clips stay and those at conditions are deleted; cancelled jobs become failed ones."""
    migrate.upgrade(empty_url)
    with psycopg.connect(empty_url) as connection:
        connection.execute("INSERT INTO jobs (job_id, status) VALUES ('job-1', 'cancelled'), ('job-2', 'queued')")
        for step, clip_index in (("encode_conditions", None), ("render_clip", 0), ("render_clip", 1)):
            row = (step, clip_index)
            connection.execute(
                "INSERT INTO attempts (job_id, step, clip_index, attempt, world_size) VALUES ('job-1', %s, %s, 1, 1)",
                row,
            )
        connection.execute("UPDATE attempts SET outcome = 'superseded' WHERE clip_index = 1")
    migrate.downgrade(empty_url, "0004")
    with psycopg.connect(empty_url) as connection:
        outcomes = connection.execute("SELECT outcome FROM attempts ORDER BY clip_index").fetchall()
    assert outcomes == [("running",), ("failed",), ("running",)]
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
    """A column that was added by hand fails the check."""
    with psycopg.connect(postgres_url) as connection:
        connection.execute("ALTER TABLE jobs ADD COLUMN extra text")
    with pytest.raises(ConfigurationError, match="extra"):
        migrate.check(postgres_url)


def test_processes_that_upgrade_at_once_wait_for_each_other(empty_url: str) -> None:
    """One of several concurrent upgrades runs, and the others find the database upgraded."""
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(migrate.upgrade, [empty_url] * 4))
    migrate.check(empty_url)


def test_an_upgrade_to_an_earlier_revision_is_refused(empty_url: str) -> None:
    """A revision may be given; an earlier or unknown one is refused with the current revision."""
    assert migrate.upgrade(empty_url, "0002") == "0002" == revision_of(empty_url)
    with pytest.raises(ConfigurationError, match=r"it is at revision 0002, expected \d{4}: run `s2v db upgrade`"):
        migrate.check(empty_url)
    assert migrate.upgrade(empty_url, "0002") == "0002"
    with pytest.raises(
        PermanentError, match=r"revision 0001: the database is at 0002, which is newer.*restore"
    ) as caught:
        migrate.upgrade(empty_url, "0001")
    assert caught.value.exit_code == 65
    for revision in ("9999", "base", "-1", "+1", "2"):
        with pytest.raises(PermanentError, match=r"does not exist: expected head or one of 0001, 0002, ") as caught:
            migrate.upgrade(empty_url, revision)
        assert caught.value.exit_code == 65
    assert revision_of(empty_url) == "0002"


def test_a_database_that_is_newer_than_the_package_is_left_alone(postgres_url: str) -> None:
    """The message asks for a newer version of the package, not for an upgrade of the database."""
    with psycopg.connect(postgres_url) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    for action in (migrate.upgrade, migrate.check):
        with pytest.raises(
            ConfigurationError, match=r"at revision 9999, which this .* does not know .*: install"
        ) as caught:
            action(postgres_url)
        assert "db upgrade" not in str(caught.value)
        assert "If it is the database of Airflow, create another one for S2V_DATABASE_URL." in str(caught.value)
        assert caught.value.exit_code == 78


@pytest.mark.parametrize("path", ["mine", "mine,public", '"Mine here",public'])
def test_tables_land_in_the_named_schema(postgres_url: str, path: str) -> None:
    """Tables are created in the first schema of search_path; an installation in a later one is ignored."""
    schema = path.split(",")[0].strip('"')
    url = f"{postgres_url}?options={quote('-csearch_path=' + path.replace(' ', chr(92) + ' '))}"
    with psycopg.connect(postgres_url) as connection:
        connection.execute("CREATE TABLE public.foreign_table (id int)")
        connection.execute(f'CREATE SCHEMA "{schema}"')
    migrate.upgrade(url)
    migrate.check(url)
    found = "SELECT tablename FROM pg_tables WHERE schemaname = %s AND tablename <> 'foreign_table'"
    with psycopg.connect(postgres_url) as connection:
        ours, others = (set(connection.execute(found, (name,)).fetchall()) for name in (schema, "public"))
        assert ours == others
        assert ("alembic_version",) in ours
        connection.execute(f'ALTER TABLE "{schema}".jobs ADD COLUMN extra text')
    with pytest.raises(ConfigurationError, match=r"changed by hand .*extra.*: revert the changes"):
        migrate.check(url)
    migrate.downgrade(url, "base")
    assert "jobs" in tables(postgres_url)


@pytest.mark.parametrize("path", ["mine,public", "mine", "Mine"])
def test_a_schema_that_does_not_exist_is_a_configuration_error(empty_url: str, path: str) -> None:
    """A missing schema is named, and no table is created in the next schema of the path."""
    with pytest.raises(ConfigurationError, match=r"Schema 'mine' of the search_path does not exist.*CREATE SCHEMA"):
        migrate.upgrade(f"{empty_url}?options=-csearch_path%3D{path}")
    assert tables(empty_url) == set()


def test_a_role_may_have_its_own_schema(empty_url: str) -> None:
    """With PostgreSQL's default search_path, tables are created in the schema with the name of the user."""
    with psycopg.connect(empty_url) as connection:
        connection.execute("CREATE SCHEMA AUTHORIZATION current_user")
    migrate.upgrade(empty_url)
    migrate.check(empty_url)
    assert tables(empty_url) == set()


def test_the_command_prints_the_revision_of_the_database(
    empty_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`s2v db upgrade` prints the revision that the database has, not the requested one."""
    monkeypatch.setenv("S2V_DATABASE_URL", f"{empty_url}\n")
    load_settings.cache_clear()
    for revision in ("0003", "head"):
        db_upgrade(revision)
        assert capsys.readouterr().out.splitlines()[-1] == f"database is at {revision_of(empty_url)}"
    with pytest.raises(PermanentError, match="is newer"):
        db_upgrade("0003")
