"""Check connections to the metadata store's database, and the messages about faulty ones."""

import random
import re
import select
import traceback
from collections.abc import Iterator
from contextlib import ExitStack

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.engine import make_url

from s2v_tasks.embedded.process import free_ports
from s2v_tasks.errors import ConfigurationError, PermanentError, S2VError, TransientError
from s2v_tasks.metadata import migrate
from s2v_tasks.metadata.session import create_engine, engine_from_settings, sole_holder, transaction
from s2v_tasks.metadata.store import MetadataStore
from s2v_tasks.settings import Settings, load_settings


def test_a_database_without_tables_names_the_remedy(postgres_url: str) -> None:
    """A database that was never migrated is a configuration error."""
    engine = create_engine(str(make_url(postgres_url).set(database="postgres").render_as_string(hide_password=False)))
    with pytest.raises(ConfigurationError, match="s2v db upgrade"):
        MetadataStore(engine).jobs.recent()
    engine.dispose()


@pytest.mark.parametrize("change", [{"password": "wrong-secret"}, {"database": "nowhere"}])
def test_a_refused_connection_is_a_configuration_error(postgres_url: str, change: dict[str, str]) -> None:
    """A wrong password or database name is reported without the password."""
    url = make_url(postgres_url).set(**change)  # type: ignore[arg-type]
    engine = create_engine(url.render_as_string(hide_password=False))
    with pytest.raises(ConfigurationError, match=f"127.0.0.1:{url.port}/{url.database} refuses") as caught:
        MetadataStore(engine).jobs.recent()
    assert str(url.password) not in str(caught.value)
    engine.dispose()


def test_a_server_that_is_away_is_a_transient_error() -> None:
    """A refused connection may succeed later; the message names host, port and database, not the password."""
    port = free_ports(1)[0]
    engine = create_engine(f"postgresql://s2v:a-secret@127.0.0.1:{port}/s2v")
    with pytest.raises(TransientError, match=f"127.0.0.1:{port}/s2v cannot be used") as caught:
        MetadataStore(engine).jobs.enqueue("job-1", {"prompt": "A person speaks."})
    assert "a-secret" not in str(caught.value)
    engine.dispose()


def test_a_database_that_only_reads_is_a_transient_error(postgres_url: str) -> None:
    """A read-only database and a failover are transient errors; a render continues without its progress."""
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f"ALTER DATABASE {make_url(postgres_url).database} SET default_transaction_read_only = on")
    engine = create_engine(postgres_url)
    with pytest.raises(TransientError, match=r"cannot be used .*read-only.*S2V_DATABASE_URL must name the primary"):
        MetadataStore(engine).jobs.enqueue("job-1", {"prompt": "A person speaks."})
    engine.dispose()


def test_a_server_without_a_free_connection_names_the_limit(postgres_url: str) -> None:
    """The limit of connections is a transient error, and the message does not ask whether the server runs."""
    database, url = make_url(postgres_url).database, make_url(postgres_url).set(username="limited", password="limited")
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("CREATE ROLE limited LOGIN PASSWORD 'limited' CONNECTION LIMIT 0")
        engine = create_engine(url.render_as_string(hide_password=False))
        with pytest.raises(TransientError, match=rf"/{database} cannot be used .*raise the limit .* PgBouncer"):
            MetadataStore(engine).jobs.recent()
        engine.dispose()
        connection.execute("DROP ROLE limited")


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
def test_a_database_of_another_encoding_is_refused(postgres_url: str, encoding: str) -> None:
    """A database that cannot store all characters is refused before a table is created in it."""
    url, name = make_url(postgres_url), f"of_{encoding.lower()}"
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING '{encoding}' LOCALE 'C'")
        with pytest.raises(ConfigurationError, match=f"/{name} has the encoding {encoding}, expected UTF8: create it"):
            migrate.upgrade(url.set(database=name).render_as_string(hide_password=False))
        connection.execute(f"DROP DATABASE {name}")


SECRETS = ("planted-user", "planted-pass", "planted@user", "planted/pass", "planted%40user", "planted%2Fpass")


@pytest.fixture
def secret_roles(postgres_url: str) -> Iterator[dict[str, str]]:
    """Roles whose names and passwords are secrets: one owns the tables, the other has no permissions."""
    database = make_url(postgres_url).database
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        for role, password in (("planted-user", "planted-pass"), ("planted@user", "planted/pass")):
            connection.execute(f"CREATE ROLE \"{role}\" LOGIN PASSWORD '{password}'")
        connection.execute('GRANT ALL ON ALL TABLES IN SCHEMA public TO "planted-user"')
        connection.execute('CREATE ROLE "planted-group" NOLOGIN')
        server = make_url(postgres_url)
        place = f"127.0.0.1:{server.port}/{database}"
        yield {
            "good": f"postgresql://planted-user:planted-pass@{place}",
            "wrong password": f"postgresql://planted%40user:planted-pass@{place}",
            "wrong user": f"postgresql://planted-users:planted%2Fpass@{place}",
            "no login": f"postgresql://planted-group:planted-pass@{place}",
            "no password": f"postgresql://planted%40user@{place}",
            "no rights": f"postgresql://planted%40user:planted%2Fpass@{place}",
            "wrong database": f"postgresql://planted%40user:planted%2Fpass@127.0.0.1:{server.port}/nowhere",
            "TLS refused": f"postgresql://planted%40user:planted%2Fpass@{place}?sslmode=require",
            "certificate": f"postgresql://planted%40user:planted%2Fpass@{place}?sslmode=verify-full",
            "unknown parameter": f"postgresql://planted-user:planted-pass@{place}?options=-c%20nothing%3D1",
            "bad parameter": f"postgresql://planted-user:planted-pass@{place}?options=-c%20jit%3Dplenty",
            "bad argument": f"postgresql://planted-user:planted-pass@{place}?options=-Y",
            "bad setting": f"postgresql://planted-user:planted-pass@{place}?options=-c%20lock_timeout%3Dlong",
            "no schema": f"postgresql://planted-user:planted-pass@{place}?options=-c%20search_path%3Dnowhere",
            "unknown host": f"postgresql://planted%40user:planted%2Fpass@unknown.invalid/{database}",
            "away": f"postgresql://planted%40user:planted%2Fpass@127.0.0.1:{free_ports(1)[0]}/{database}",
            "all away": "postgresql://planted%40user:planted%2Fpass@127.0.0.1:1,[::1]:1/db",
            "no socket": f"postgresql://planted%40user:planted%2Fpass@%2Fnonexistent/{database}",
            "not encoded": f"postgresql://planted@user:planted/pass@{place}",
            "bad option": f"postgresql://planted%40user:planted%2Fpass@{place}?sslmode=requier",
        }
        for role in ("planted-user", "planted@user", "planted-group"):
            connection.execute(f'DROP OWNED BY "{role}"; DROP ROLE "{role}"')


@pytest.mark.parametrize(
    ("case", "exit_code", "remedy"),
    [
        ("wrong password", 78, "refuses the connection .*percent-encode user and password"),
        ("wrong user", 78, "refuses the connection .*check S2V_DATABASE_URL"),
        ("no login", 78, "refuses the connection"),
        ("no password", 78, "refuses the connection .*no password supplied"),
        ("no rights", 78, "permission denied.*grant the user"),
        ("wrong database", 78, "refuses the connection .*nowhere.*check S2V_DATABASE_URL"),
        ("TLS refused", 78, "refuses the connection .*does not support SSL"),
        ("certificate", 78, "refuses the connection .*(certificate|SSL)"),
        ("unknown parameter", 78, 'refuses the connection .*unrecognized configuration parameter "nothing"'),
        ("bad parameter", 78, 'refuses the connection .*"jit"'),
        ("bad argument", 78, "refuses the connection .*invalid command-line argument"),
        ("bad setting", 78, 'refuses the connection .*"lock_timeout": "long"'),
        ("no schema", 78, "does not have the expected tables"),
        ("unknown host", 75, "unknown.invalid:5432/.* cannot be used"),
        ("away", 75, "cannot be used"),
        ("all away", 75, r"127.0.0.1:1,\[::1\]:1/db cannot be used"),
        ("no socket", 75, "/nonexistent:5432/.* cannot be used"),
        ("not encoded", 78, "percent-encode user and password"),
        ("bad option", 78, "sslmode, expected disable, allow"),
    ],
)
def test_no_failure_shows_user_or_password(
    secret_roles: dict[str, str],
    case: str,
    exit_code: int,
    remedy: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Messages, printed causes and logs at DEBUG show neither, for connections and for migrations."""
    monkeypatch.setenv("S2V_DATABASE_URL", secret_roles[case])
    caplog.set_level("DEBUG", logger="sqlalchemy")
    load_settings.cache_clear()
    logged = ""
    for action in (_list_jobs, _upgrade):
        with pytest.raises(S2VError) as caught:
            action()
        if action is _list_jobs:
            assert caught.value.exit_code == exit_code
            assert re.search(remedy, str(caught.value))
        logged += "".join(traceback.format_exception(caught.value)) + str(caught.value)
    said = logged + "".join(capfd.readouterr()) + caplog.text + repr(load_settings())
    assert [secret for secret in SECRETS if secret in said] == []


def _list_jobs() -> None:
    engine = engine_from_settings(load_settings())
    try:
        MetadataStore(engine).jobs.recent()
    finally:
        engine.dispose()


def _upgrade() -> None:
    url = load_settings().database_url
    assert url is not None
    migrate.upgrade(url.get_secret_value())
    migrate.check(url.get_secret_value())
    raise TransientError("nothing failed")


def test_a_statement_that_fails_shows_no_values(secret_roles: dict[str, str], engine: sa.Engine) -> None:
    """An SQL error is raised with its statement, but without values, which may be secrets of a request."""
    with pytest.raises(sa.exc.ProgrammingError) as caught, transaction(engine) as connection:
        connection.execute(sa.text("SELECT nothing(:value)"), {"value": secret_roles["good"]})
    assert "nothing(" in str(caught.value)
    assert "planted-pass" not in "".join(traceback.format_exception(caught.value))


def test_an_index_that_cannot_hold_a_text_is_a_permanent_error(engine: sa.Engine) -> None:
    """A text that is too long for an index is a permanent error."""
    with pytest.raises(PermanentError, match=r"cannot hold a value .*index row") as caught:
        MetadataStore(engine).jobs.enqueue("job-1", {"parent_job_id": random.Random(0).randbytes(9000).hex()})
    assert caught.value.exit_code == 65


def test_more_threads_than_connections_are_a_transient_error(engine: sa.Engine) -> None:
    """A thread that gets no connection of the pool in time may try again."""
    engine.pool._timeout = 0.01
    with ExitStack() as stack:
        for _ in range(12):
            stack.enter_context(engine.connect())
        with pytest.raises(TransientError, match="all connections of this process are in use"):
            MetadataStore(engine).jobs.recent()


def test_each_transaction_has_time_limits_and_utc(postgres_url: str) -> None:
    """Limits and time zone hold per transaction; limits in the URL have precedence, the time zone is always UTC."""
    for options, expected in (
        ("", ("1min", "1min", "UTC")),
        ("?options=-c%20statement_timeout%3D7s%20-c%20timezone%3DCET", ("7s", "1min", "UTC")),
    ):
        engine = create_engine(postgres_url + options)
        names = ("statement_timeout", "idle_in_transaction_session_timeout", "timezone")
        look = sa.select(*(sa.func.current_setting(name) for name in names))
        with transaction(engine) as connection:
            assert tuple(connection.execute(look).one()) == expected
        with engine.connect() as connection:
            assert tuple(connection.execute(look).one())[:2] == ("0", "0")
        engine.dispose()


def test_a_lock_is_free_when_its_block_ends(postgres_url: str) -> None:
    """A lock is released however its block ends; meanwhile only an installation in another schema gets it."""
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("CREATE SCHEMA other")
    first, second = create_engine(postgres_url), create_engine(postgres_url)
    elsewhere = create_engine(postgres_url + "?options=-csearch_path%3Dother")
    with sole_holder(first, 7, "busy"):
        with pytest.raises(TransientError, match=r"^busy$"), sole_holder(second, 7, "busy"):
            pass
        with sole_holder(second, 8, "busy"), sole_holder(elsewhere, 7, "busy"):
            pass
    with pytest.raises(PermanentError, match="mine"), sole_holder(second, 7, "busy"):
        raise PermanentError("mine")
    with sole_holder(first, 7, "busy"):
        pass
    for engine in (first, second, elsewhere):
        engine.dispose()


def test_a_lock_is_held_for_the_whole_block(postgres_url: str) -> None:
    """Time limits of a transaction, also the server's, do not end a lock."""
    engine = create_engine(postgres_url)
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        for name in ("idle_in_transaction_session_timeout", "transaction_timeout"):
            connection.execute(f"ALTER DATABASE {make_url(postgres_url).database} SET {name} = '200ms'")
        with sole_holder(engine, 7, "busy"):
            idle = psycopg.connect(postgres_url)
            idle.execute("SELECT 1")
            select.select([idle], [], [])  # the server has ended that transaction, which is younger than ours
            idle.close()
            held = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"
            assert connection.execute(held).fetchone() == (1,)
    engine.dispose()


def test_no_database_is_a_configuration_error() -> None:
    """Without the setting, the message says how to get a database."""
    with pytest.raises(ConfigurationError, match=r"S2V_DATABASE_URL is not set.*run `make up`"):
        engine_from_settings(Settings())  # type: ignore[call-arg]
