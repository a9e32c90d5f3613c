"""Real services for tests, started once per session on loopback: PostgreSQL, and S3 by moto.

No test sees the settings, credentials, running stack or Airflow of the machine it runs on.
"""

import atexit
import gc
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from moto.server import ThreadedMotoServer

from s2v_tasks.embedded.guard import temporary_home
from s2v_tasks.embedded.postgres import PostgresServer
from s2v_tasks.metadata import migrate
from s2v_tasks.settings import Settings, load_settings
from s2v_tasks.storage.s3 import ObjectStore

_TEMPLATE = "s2v_template"

# Airflow reads its configuration at the first import, so it is set before any test module is imported.
os.environ["AIRFLOW_HOME"] = tempfile.mkdtemp(prefix="airflow-")
atexit.register(shutil.rmtree, os.environ["AIRFLOW_HOME"], ignore_errors=True)
os.environ |= {"AIRFLOW__CORE__LOAD_EXAMPLES": "False", "AIRFLOW__CORE__UNIT_TEST_MODE": "False"}


def pytest_configure() -> None:
    """Give each worker of pytest-xdist one core.

    The threads of torch would otherwise wait for each other in busy loops, which takes half as much time again.
    """
    worker, cores = os.environ.get("PYTEST_XDIST_WORKER"), sorted(os.sched_getaffinity(0))
    if worker is not None:
        os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})


@pytest.fixture(scope="module", autouse=True)
def _small_collections() -> None:
    """Exclude what exists, such as Airflow and torch, from the garbage collections of this file."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _own_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in list(os.environ):
        if name.startswith(("S2V_", "AWS_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("S2V_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("PET_LOG_DIR", str(tmp_path))  # torchrun leaves its folder for logs
    load_settings.cache_clear()
    yield
    load_settings.cache_clear()


@pytest.fixture(scope="session")
def server_home() -> Iterator[Path]:
    """A folder for embedded servers; they end with this process, even when it is killed."""
    with temporary_home() as home:
        yield home


@pytest.fixture(scope="session")
def postgres_server(server_home: Path) -> Iterator[PostgresServer]:
    """A running PostgreSQL with a migrated template database."""
    server = PostgresServer(server_home)
    server.start()
    try:
        migrate.upgrade(server.ensure_database(_TEMPLATE))
        with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
            # These databases need not survive a crash of the machine, and are created and dropped in half the time.
            connection.execute("ALTER SYSTEM SET fsync = off")
            connection.execute("SELECT pg_reload_conf()")
        yield server
    finally:
        server.stop()


@pytest.fixture
def postgres_url(postgres_server: PostgresServer) -> Iterator[str]:
    """The URL of a fresh, migrated database."""
    name = f"test_{uuid.uuid4().hex}"
    with psycopg.connect(postgres_server.url("postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {_TEMPLATE}")
        yield postgres_server.url(name)
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="session")
def moto_endpoint() -> Iterator[str]:
    """The endpoint of an S3 server in this process."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3_settings(moto_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings whose store is a fresh bucket; `load_settings()` gives the same, in child processes too."""
    bucket = f"test-{uuid.uuid4().hex}"
    variables = {
        "DATA_URI": f"s3://{bucket}/data",
        "OUTPUT_URI": f"s3://{bucket}/output",
        "S3_ENDPOINT_URL": moto_endpoint,
        "S3_ACCESS_KEY_ID": "test",
        "S3_SECRET_ACCESS_KEY": "test-secret",
    }
    for name, value in variables.items():
        monkeypatch.setenv(f"S2V_{name}", value)
    load_settings.cache_clear()
    settings = load_settings()
    ObjectStore.from_settings(settings).ensure_bucket()
    return settings


@pytest.fixture
def object_store(s3_settings: Settings) -> ObjectStore:
    """A store on a fresh bucket."""
    return ObjectStore.from_settings(s3_settings)


@pytest.fixture(scope="session")
def tiny_snapshot_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny snapshot that tests must not change."""
    from s2v_tasks.verification.tiny_snapshot import write_tiny_snapshot

    path = tmp_path_factory.mktemp("snapshots") / "tiny"
    write_tiny_snapshot(path, seed=0)
    return path
