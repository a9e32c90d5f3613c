"""The embedded stack: PostgreSQL, S3, a small snapshot and Airflow on this machine, without configuration.

All state lies in the home folder and survives a restart. Everything listens on loopback only.
"""

import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.table import Table

from s2v_tasks.embedded.airflow import AirflowInstallation
from s2v_tasks.embedded.checkout import CHECKOUT
from s2v_tasks.embedded.guard import Ending, end_leftovers, guarded
from s2v_tasks.embedded.object_store import S3Server
from s2v_tasks.embedded.postgres import PostgresServer
from s2v_tasks.embedded.process import exclusive, write_private
from s2v_tasks.errors import ConfigurationError
from s2v_tasks.log import get_logger
from s2v_tasks.metadata.migrate import upgrade
from s2v_tasks.schemas.preset import load_demo_request
from s2v_tasks.schemas.steps import JOB_DAG
from s2v_tasks.settings import PREFIX, Settings, config_dir, load_settings
from s2v_tasks.stack_env import stack_env_path
from s2v_tasks.storage.inputs import content_type
from s2v_tasks.storage.s3 import ObjectStore

BUCKET = "s2v"
_MODEL = "talker"  # an entry of config/models.yaml
SAMPLES = CHECKOUT / "tests" / "samples"
# Settings of the services. The environment may choose other weights, but not the services of another installation.
_OWN_SETTINGS = (
    "DATABASE_URL", "DATA_URI", "OUTPUT_URI", "S3_ENDPOINT_URL", "S3_ACCESS_KEY_ID", "S3_SECRET_ACCESS_KEY",
    "AIRFLOW_URL",
)  # fmt: skip


class Services:
    """PostgreSQL and S3, with the database, buckets, snapshot and samples that steps need."""

    def __init__(self, home: Path) -> None:
        self.home = home.resolve()
        self.postgres = PostgresServer(self.home)
        self.s3 = S3Server(self.home)

    def start(self) -> Settings:
        """Start the services that do not run, create what is missing, and return the settings for steps."""
        with exclusive(self.home / "stack.lock"):
            self.postgres.start()
            self.s3.start()
            self.s3.ensure_bucket(BUCKET)
            upgrade(self.postgres.ensure_database("s2v"))
            self._write_environment(self._snapshot())
        load_settings.cache_clear()
        settings = load_settings()
        self._upload_samples(settings)
        return settings

    @contextmanager
    def in_use(self, when_killed: Ending = "release") -> Iterator[Settings]:
        """Start the services for the block; stop them afterwards unless another process or Airflow uses them.

        `when_killed`: action of the guard if this process is killed in the meantime.
        """
        end_leftovers()
        self.home.mkdir(parents=True, exist_ok=True)
        with (self.home / "users.lock").open("w") as users, guarded(self.home, when_killed):
            fcntl.flock(users, fcntl.LOCK_SH)
            try:
                yield self.start()
            finally:
                self._release(users)

    def release(self, *, with_airflow: bool = False) -> None:
        """Stop the services unless a process uses them, and Airflow if wanted. A new user waits for the end."""
        with (self.home / "users.lock").open("w") as users:
            self._release(users, with_airflow=with_airflow)

    def _release(self, users: TextIO, *, with_airflow: bool = False) -> None:
        with suppress(BlockingIOError):  # another user
            fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if with_airflow:
                AirflowInstallation(self.home).stop()
            if not AirflowInstallation(self.home).running():
                self.stop()

    def stop(self) -> None:
        self.s3.stop()
        self.postgres.stop()

    def _snapshot(self) -> Path:
        """Return the path of the talking snapshot; write it at the first start."""
        folder = self.home / "snapshots" / _MODEL
        if not folder.exists():
            command = [sys.executable, "-m", "s2v_tasks.cli", "snapshot", "init-talker", str(folder)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise ConfigurationError(f"The snapshot {folder} cannot be made: {done.stderr.strip()}")
        return folder

    def _write_environment(self, snapshot: Path) -> None:
        """Write the settings to the file that every `s2v` command of this home folder reads."""
        if stack_env_path().resolve() != self.home / "stack.env":
            raise ConfigurationError(
                f"{PREFIX}HOME leads to {stack_env_path().resolve()}: expected {self.home / 'stack.env'}. Correct it."
            )
        values = {
            "DATABASE_URL": self.postgres.url("s2v"),
            "S3_ENDPOINT_URL": self.s3.endpoint_url,
            "S3_ACCESS_KEY_ID": self.s3.access_key_id,
            "S3_SECRET_ACCESS_KEY": self.s3.secret_access_key,
            "DATA_URI": f"s3://{BUCKET}",
            "OUTPUT_URI": f"s3://{BUCKET}/output",
            "AIRFLOW_URL": AirflowInstallation(self.home).claim_port(),
            "SNAPSHOT_PATH": str(snapshot),
            "MODEL": _MODEL,
            "GPU": "cpu",
        }
        strayed = sorted(name for name in _OWN_SETTINGS if os.environ.get(PREFIX + name, values[name]) != values[name])
        if strayed:
            raise ConfigurationError(
                f"{', '.join(PREFIX + name for name in strayed)}: set in the environment to other servers than the "
                "embedded ones: unset it for the embedded stack."
            )
        lines = [
            "# Written by the embedded stack at each start.",
            *(f"{PREFIX}{k}={_quoted(v)}" for k, v in values.items()),
        ]
        write_private(self.home / "stack.env", "\n".join(lines) + "\n")

    def _upload_samples(self, settings: Settings) -> None:
        """Upload the inputs of the example request."""
        store, example = ObjectStore.from_settings(settings), load_demo_request(config_dir(settings))
        for uri in (example["image_uri"], example["audio_uri"]):
            path = SAMPLES / uri.rpartition("/")[2]
            if not store.exists(uri):
                store.upload(path, uri, content_type(path))


def _quoted(value: str) -> str:
    """Return a value quoted for python-dotenv, which replaces variables even between single quotes.

    The variable without a name and with the default `$` stands for a `$` that begins no variable.
    """
    escaped = value.replace("\\", r"\\").replace("'", r"\'").replace("${", "${:-$}{")
    return f"'{escaped}'"


def up(home: Path) -> None:
    """Start all services, wait until they are healthy, and print the address of the UI."""
    services, airflow = Services(home), AirflowInstallation(home)
    # Services that run already belong to an earlier start.
    with services.in_use(when_killed="release" if airflow.running() else "down"):
        database_url = services.postgres.ensure_database("airflow")
        airflow.start(airflow.environment(database_url))
    status(home)


def down(home: Path) -> None:
    """Stop all services; data is kept. Running tasks are ended and retried after the next `up`.

    Leftovers of killed test runs on this machine are stopped too.
    """
    stop_all(home)
    end_leftovers()
    get_logger().info("stack_stopped", home=str(home))


def stop_all(home: Path) -> None:
    """Stop all services of a home folder."""
    AirflowInstallation(home).stop()
    Services(home).stop()


def status(home: Path) -> None:
    """Print the services that run and their addresses."""
    services, airflow = Services(home), AirflowInstallation(home)
    health = airflow.health() if airflow.running() else {}
    table = Table("service", "state")
    table.add_column("where", overflow="fold")
    table.add_row("PostgreSQL", _state(services.postgres.is_running()), str(services.home / "postgres"))
    s3_runs = services.s3.is_running()
    table.add_row("S3", _state(s3_runs), services.s3.endpoint_url if s3_runs else "")
    for part, state in health.items():
        table.add_row(f"Airflow {part}", state, "")
    table.add_row("Airflow UI", _state(bool(health)), airflow.url if health else "")
    console = Console()
    console.print(table)
    pages = {"Form": f"{airflow.url}/dags/{JOB_DAG}", "Videos": f"{airflow.url}/plugin/videos"} if health else {}
    files = {"Settings": str(services.home / "stack.env"), "Logs": str(services.home / "logs")}
    for name, place in (pages | files).items():
        console.print(f"{name + ':':<10}{place}", markup=False, soft_wrap=True)  # whole, so that it can be copied


def _state(is_running: bool) -> str:
    return "running" if is_running else "stopped"
