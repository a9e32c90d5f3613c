"""Check the system with PgBouncer, in pool modes session and transaction."""

import os
import pwd
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from s2v_tasks.embedded.postgres import PostgresServer
from s2v_tasks.embedded.process import free_ports
from s2v_tasks.errors import ConfigurationError, TransientError
from s2v_tasks.metadata import migrate
from s2v_tasks.metadata.session import create_engine, sole_holder
from s2v_tasks.metadata.store import MetadataStore
from s2v_tasks.metadata.tables import Job
from s2v_tasks.parent_death import end_with_parent

PROGRAM = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="needs PgBouncer: apt-get install pgbouncer")
MODES = ("session", "transaction")
Render = Callable[..., list[bool]]


class Pooler:
    """A PgBouncer in front of one server, with `pool_size` connections for each database."""

    def __init__(self, server: PostgresServer, folder: Path, mode: str, pool_size: int = 4) -> None:
        self.mode, self._folder, self._port = mode, folder, free_ports(1)[0]
        own = conninfo_to_dict(server.url("postgres"))
        self.user, self.password = str(own["user"]), str(own["password"])
        (folder / "users.txt").write_text(f'"{self.user}" "{self.password}"\n', encoding="utf-8")
        settings = {
            "listen_addr": "127.0.0.1",
            "listen_port": self._port,
            "unix_socket_dir": "",
            "auth_type": "scram-sha-256",
            "auth_file": folder / "users.txt",
            "pool_mode": mode,
            "default_pool_size": pool_size,
            "server_login_retry": 1,
        }
        lines = ["[databases]", f"* = host=127.0.0.1 port={own['port']}", "[pgbouncer]"]
        lines += [f"{name} = {value}" for name, value in settings.items()]
        (folder / "pgbouncer.ini").write_text("\n".join(lines) + "\n", encoding="utf-8")
        self._log = folder / "pgbouncer.log"

    def __enter__(self) -> "Pooler":
        identity: dict[str, Any] = {}
        if os.geteuid() == 0:  # which PgBouncer refuses
            account = pwd.getpwnam("nobody")
            identity = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [str(PROGRAM), str(self._folder / "pgbouncer.ini")],
                stdout=log,
                stderr=log,
                preexec_fn=partial(end_with_parent, signal.SIGKILL, os.getpid()),
                **identity,
            )
        while not self._answers():
            assert self._process.poll() is None, self._log.read_text(encoding="utf-8")
            time.sleep(0.02)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def url(self, database: str, *, password: str | None = None) -> str:
        return f"postgresql://{self.user}:{quote(password or self.password)}@127.0.0.1:{self._port}/{database}"

    def _answers(self) -> bool:
        try:
            psycopg.connect(self.url("postgres"), connect_timeout=10).close()
        except psycopg.OperationalError:
            return False
        return True


@pytest.fixture
def folder_for_all() -> Iterator[Path]:
    """A folder that the account of the pooler can reach."""
    folder = Path(tempfile.mkdtemp(prefix="s2v-pgbouncer-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(params=MODES)
def pooler(request: pytest.FixtureRequest, postgres_server: PostgresServer, folder_for_all: Path) -> Iterator[Pooler]:
    with Pooler(postgres_server, folder_for_all, request.param) as pooler:
        yield pooler


@pytest.fixture
def database(postgres_server: PostgresServer) -> Iterator[str]:
    """The name of a database without tables."""
    name = f"pooled_{uuid.uuid4().hex}"
    postgres_server.ensure_database(name)
    yield name
    with psycopg.connect(postgres_server.url("postgres"), autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def postgres_url(pooler: Pooler, database: str) -> str:
    """The database that the fixtures of this folder use, through the pooler and migrated by the command."""
    url = pooler.url(database)
    done = s2v(url, "db", "upgrade")
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"database is at \d{4}\n", done.stdout)
    return url


def s2v(url: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "s2v_tasks.cli", *arguments],
        env=os.environ | {"S2V_DATABASE_URL": url},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_job_runs_from_its_request_to_its_video(
    render: Render, assemble: Callable[[], None], found: Callable[[], Job], metadata: MetadataStore
) -> None:
    """Each step works through the pooler, also if it runs again, and six threads can read the job at once."""
    assert render() == [False, False]
    assemble()
    assert render() == [True, True]
    assemble()
    job = found()
    assert (job.status, [clip.status for clip in job.clips]) == ("succeeded", ["succeeded"] * 2)
    assert [attempt.outcome for attempt in job.attempts] == ["succeeded"] * 3
    with ThreadPoolExecutor(6) as pool:
        records = list(pool.map(metadata.jobs.get, [job.job_id] * 150))
    assert all(record == job for record in records)


def test_nothing_of_a_session_is_left_to_the_next_client(
    postgres_server: PostgresServer, folder_for_all: Path, database: str
) -> None:
    """With one shared connection, another client finds no setting, prepared statement or lock of this one."""
    with Pooler(postgres_server, folder_for_all, "transaction", pool_size=1) as pooler:
        names = ("statement_timeout", "idle_in_transaction_session_timeout", "timezone", "search_path")
        look = "SELECT " + ", ".join(f"current_setting('{name}')" for name in names) + ", pg_backend_pid()"
        with psycopg.connect(pooler.url(database), autocommit=True, prepare_threshold=None) as other:
            before = other.execute(look).fetchone()
            url = pooler.url(database) + "?options=-c%20search_path%3Dpublic"
            migrate.upgrade(url)
            engine = create_engine(url)
            with sole_holder(engine, 1, "busy"):
                pass
            for _ in range(9):  # as often as lets psycopg prepare a statement
                assert MetadataStore(engine).jobs.get("job-1") is None
            assert other.execute(look).fetchone() == before
            left = (
                "SELECT (SELECT count(*) FROM pg_prepared_statements), (SELECT count(*) FROM pg_locks"
                " WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = %s))"
            )
            assert other.execute(left, (database,)).fetchone() == (0, 0)
            engine.dispose()


def test_one_long_sweep_at_a_time(pooler: Pooler, postgres_url: str, database: str) -> None:
    """The lock of a sweep outlives the idle limit of the server and is released afterwards."""
    first, second = create_engine(postgres_url), create_engine(postgres_url)
    with psycopg.connect(pooler.url(database), autocommit=True) as connection:
        connection.execute(f"ALTER DATABASE {database} SET idle_in_transaction_session_timeout = '100ms'")
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
            " AND pid <> pg_backend_pid()"
        )
    with MetadataStore(first).drops.sweep_lock():
        with psycopg.connect(postgres_url) as idle:
            idle.execute("SELECT 1")
            select.select([idle], [], [])  # the server has ended that transaction, which is younger than ours
            with pytest.raises(psycopg.Error):
                idle.execute("SELECT 1")
        with pytest.raises(TransientError, match="Another sweep"), MetadataStore(second).drops.sweep_lock():
            pass
    with MetadataStore(second).drops.sweep_lock():
        pass
    first.dispose()
    second.dispose()


def test_tables_land_in_the_schema_of_the_url(pooler: Pooler, postgres_server: PostgresServer, database: str) -> None:
    """A search_path in the URL works without a startup parameter, which PgBouncer would refuse."""
    with psycopg.connect(postgres_server.url(database), autocommit=True) as connection:
        connection.execute("CREATE SCHEMA mine")
    url = pooler.url(database) + "?pgbouncer=true&options=-c%20search_path%3Dmine"
    assert s2v(url, "db", "upgrade").returncode == 0
    engine = create_engine(url)
    MetadataStore(engine).jobs.enqueue("job-1", {})
    engine.dispose()
    with psycopg.connect(postgres_server.url(database)) as connection:
        assert connection.execute("SELECT job_id FROM mine.jobs").fetchall() == [("job-1",)]
        assert connection.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").fetchone() == (0,)


@pytest.mark.parametrize(
    ("database", "password", "options"),
    [("nowhere", None, ""), ("postgres", "planted-secret", ""), ("postgres", None, "?options=-c%20jit%3Doff")],
)
def test_what_the_pooler_refuses_is_a_configuration_error(
    pooler: Pooler, database: str, password: str | None, options: str
) -> None:
    """A wrong database, password or startup parameter has a message with its remedy, without user and password."""
    engine = create_engine(pooler.url(database, password=password) + options)
    with pytest.raises(ConfigurationError, match="refuses the connection") as caught:
        MetadataStore(engine).jobs.recent()
    assert "planted-secret" not in str(caught.value)
    engine.dispose()
