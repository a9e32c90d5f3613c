"""Airflow on this machine, on loopback: its configuration, its database, its four processes.

The processes are started one by one instead of by `airflow standalone`, which opens the log servers of scheduler and
triggerer to the network and does not end its child processes.
"""

import contextlib
import importlib.metadata
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import time
import urllib.request
from base64 import urlsafe_b64encode
from pathlib import Path
from typing import Any

import psutil

from s2v_tasks.embedded.checkout import CHECKOUT, digest_code, digest_settings, without_variables
from s2v_tasks.embedded.process import (
    DetachedProcess,
    around_proxies,
    exclusive,
    free_ports,
    is_free,
    log_tail,
    make_private,
    read_state,
    write_private,
)
from s2v_tasks.errors import ConfigurationError, TransientError
from s2v_tasks.log import get_logger

DEFAULT_PORT = 8080
_API_SERVER = "api-server"
_SCHEDULER = "scheduler"
_TASK = re.compile("airflow worker -- (?!LocalExecutor)")  # the process of a task; its parent is a worker
_COMPONENTS = {
    _API_SERVER: (),
    _SCHEDULER: ("--skip-serve-logs",),
    "dag-processor": (),
    "triggerer": ("--skip-serve-logs",),
}
_START_SECONDS = 180.0
_STOP_SECONDS = 20.0
_POLL_SECONDS = 0.25
_LOG_AGAIN_SECONDS = 10.0
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class AirflowInstallation:
    """One Airflow with its own folder and database.

    `name` separates the serving Airflow from the one of the demo, because no live scheduler may see runs of the demo.
    """

    def __init__(self, home: Path, name: str = "airflow") -> None:
        self.folder = home.resolve() / name
        self.logs = home.resolve() / "logs"
        self._home = home.resolve()
        self._name = name
        self._state_path = self.folder / "server.json"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._state['port']}"

    def claim_port(self) -> str:
        """Return the URL of the API server; choose a free port before the first start."""
        make_private(self.folder)  # the logs of tasks have requests of users
        with exclusive(self.folder / "lock"):
            self._leave_taken_port()
            return self.url

    def environment(self, database_url: str) -> dict[str, str]:
        """Return the environment of every Airflow process."""
        self.claim_port()
        state = self._state
        configuration = {
            "core": {
                "dags_folder": without_variables(CHECKOUT) / "dags",
                "load_examples": False,
                "executor": "LocalExecutor",
                "parallelism": 4,
                "fernet_key": state["fernet_key"],
                "simple_auth_manager_all_admins": True,
                "dags_are_paused_at_creation": False,
                "execution_api_server_url": f"{self.url}/execution/",
                # The import of the pod operator takes 2 s alone, and over 30 s (the default) on a busy machine.
                "dagbag_import_timeout": 120,
            },
            "database": {"sql_alchemy_conn": database_url.replace("postgresql://", "postgresql+psycopg2://")},
            "api": {
                "host": "127.0.0.1",
                "port": state["port"],
                "base_url": self.url,
                "secret_key": state["secret_key"],
                "workers": 1,
            },
            "api_auth": {"jwt_secret": state["jwt_secret"]},
            "dag_processor": {"refresh_interval": 10, "dag_file_processor_timeout": 180},
            # The first answers of the API server take over 5 s (the default) on a busy machine: tasks would fail.
            "workers": {"execution_api_timeout": 30},
            # After a power failure interrupted tasks are found soon after the next start.
            "scheduler": {"task_instance_heartbeat_timeout": 60},
        }
        variables = {
            f"AIRFLOW__{section}__{key}".upper(): str(value)
            for section, keys in configuration.items()
            for key, value in keys.items()
        }
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
        inherited |= around_proxies()
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
        airflow_home = str(without_variables(self.folder))
        return inherited | variables | {"AIRFLOW_HOME": airflow_home, "S2V_HOME": str(self._home), "PATH": path}

    def migrate(self, environment: dict[str, str]) -> None:
        """Migrate Airflow's database to the installed version; TransientError with the log if that fails."""
        version, state = importlib.metadata.version("apache-airflow-core"), self._state
        if state.get("migrated_to") == version:
            return
        get_logger().info("airflow_database_is_migrated", version=version)
        log_path = self.logs / f"{self._name}-migrate.log"
        make_private(self.logs)
        with log_path.open("wb") as log:
            done = subprocess.run(
                airflow_command("db", "migrate"), env=environment, stdout=log, stderr=subprocess.STDOUT, check=False
            )
        if done.returncode:
            raise TransientError(f"Airflow's database cannot be migrated; {log_path}:\n{log_tail(log_path)}")
        write_private(self._state_path, json.dumps(state | {"migrated_to": version}))

    def start(self, environment: dict[str, str]) -> None:
        """Start what does not run yet and wait until all of it is healthy.

        If the code has changed, all processes start again: they would keep the old code, but tasks run with the new.
        ConfigurationError, and no change, if they began with other values of the settings of the package.
        """
        with exclusive(self.folder / "lock"):
            self._leave_old_code(environment)
            self.migrate(environment)
            for component, arguments in _COMPONENTS.items():
                process = self._process(component)
                if process.pid() is None:
                    # Idle workers of a killed scheduler wait forever; busy ones finish their task.
                    process.stop_left_behind("LocalExecutor: <idle>", _POLL_SECONDS)
                    command = airflow_command(component, *arguments)
                    process.start(command, self._log_path(component), env=environment, cwd=CHECKOUT)
            self._wait_until_healthy()
            get_logger().info("airflow_started", url=self.url)

    def _leave_old_code(self, environment: dict[str, str]) -> None:
        """Stop the processes if they began with other code; record code and settings of those that will start."""
        code, settings, state = digest_code(), digest_settings(environment), self._state
        if self.running():
            started = state.get("settings", {"settings that an older version did not record": ""} | settings)
            # A setting that is missing now matters only if the processes would start again without it.
            names = settings if state.get("code") == code else settings | started
            if other := sorted(name for name in names if started.get(name) != settings.get(name)):
                raise ConfigurationError(
                    f"Airflow runs, and began with other values of {', '.join(other)}: expected those of the "
                    "environment. Set them to the same values, or stop Airflow first with `make down`."
                )
            if state.get("code") == code:
                return
            get_logger().info("airflow_restarts", reason="the code of the checkout has changed")
            self._stop_all()
        write_private(self._state_path, json.dumps(state | {"code": code, "settings": settings}))

    def stop(self) -> None:
        """End all processes; running tasks are ended with them and retried after the next start."""
        with exclusive(self.folder / "lock"):
            self._stop_all()

    def _stop_all(self) -> None:
        """End all processes. The API server ends last, because the workers report the end of their tasks to it."""
        others = [name for name in _COMPONENTS if name != _API_SERVER]
        processes = self._stop(others) + self._stop([_API_SERVER])
        get_logger().info("airflow_stopped", processes=processes)

    def _stop(self, names: list[str]) -> int:
        """End these components with their child processes; return the number of processes."""
        running = [process for name in names if (process := self._process(name)).pid() is not None]
        if running:
            get_logger().info("airflow_stops", components=", ".join(names))
        for process in running:  # first signal all of them: each takes seconds to end
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid() or 0, signal.SIGTERM)
        if _SCHEDULER in names:
            self._end_tasks()
        for process in running:
            process.stop(signal.SIGTERM, _STOP_SECONDS)
        # A scheduler that was killed has not ended its workers.
        return len(running) + sum(self._process(name).stop_left_behind("airflow", _STOP_SECONDS) for name in names)

    def _end_tasks(self) -> None:
        """End the tasks, for which the ending scheduler waits; its workers also begin tasks that were queued."""
        scheduler, deadline = self._process(_SCHEDULER), time.monotonic() + _STOP_SECONDS
        signalled: set[int] = set()
        while scheduler.pid() is not None and time.monotonic() < deadline:
            for task in scheduler.session(_TASK):
                if task.pid not in signalled:
                    signalled.add(task.pid)
                    with contextlib.suppress(psutil.NoSuchProcess):
                        task.terminate()
            time.sleep(_POLL_SECONDS)

    def running(self) -> list[str]:
        """Return the components that run."""
        if not self._state_path.exists():
            return []
        return [name for name in _COMPONENTS if self._process(name).pid() is not None]

    def health(self) -> dict[str, str]:
        """Return the status of each component of Airflow; empty while it does not answer."""
        return {part: str(facts["status"]) for part, facts in self._ask("monitor/health").items()}

    def _unread_dags(self) -> list[str]:
        """Return the files of DAGs of which Airflow has neither a DAG nor an import error."""
        read = {dag["relative_fileloc"] for dag in self._ask("dags").get("dags", [])}
        read |= {Path(error["filename"]).name for error in self._ask("importErrors").get("import_errors", [])}
        return sorted(path.name for path in (CHECKOUT / "dags").glob("*.py") if path.name not in read)

    def _ask(self, path: str) -> dict[str, Any]:
        """Return the answer of the REST API; empty while it does not answer."""
        try:
            with _direct.open(f"{self.url}/api/v2/{path}", timeout=30) as answer:
                return dict(json.load(answer))
        except (OSError, ValueError):
            return {}

    def _wait_until_healthy(self) -> None:
        began = logged_at = time.monotonic()
        deadline, logged = began + _START_SECONDS, ""
        while True:
            health = self.health()
            waits_for = _unhealthy(health) if health else ["api server"]
            if not waits_for:
                waits_for = self._unread_dags()
            if not waits_for:
                return
            now = time.monotonic()
            if logged != (logged := ", ".join(waits_for)) or now - logged_at > _LOG_AGAIN_SECONDS:
                logged_at = now
                get_logger().info("airflow_starts", waits_for=logged, seconds=round(now - began))
            for component in _COMPONENTS:
                if self._process(component).pid() is None:
                    log_path = self._log_path(component)
                    raise TransientError(f"Airflow's {component} ended; {log_path}:\n{log_tail(log_path)}")
            if time.monotonic() > deadline:
                raise TransientError(
                    f"Airflow is not healthy after {_START_SECONDS:.0f} s ({health}); see {self.logs}/airflow-*.log."
                )
            time.sleep(_POLL_SECONDS)

    @property
    def _state(self) -> dict[str, Any]:
        """Return port and secrets. They are created once: URLs, sessions and stored values survive a restart."""
        state = read_state(self._state_path)
        if not state:
            self.folder.mkdir(parents=True, exist_ok=True)
            state = {
                "port": DEFAULT_PORT if is_free(DEFAULT_PORT) else free_ports(1)[0],
                "fernet_key": urlsafe_b64encode(secrets.token_bytes(32)).decode(),
                "jwt_secret": secrets.token_urlsafe(48),
                "secret_key": secrets.token_urlsafe(32),
            }
            write_private(self._state_path, json.dumps(state))
        return state

    def _leave_taken_port(self) -> None:
        """Choose another port if a program has taken it while Airflow did not run."""
        state = self._state
        if not is_free(state["port"]) and not self.running():
            write_private(self._state_path, json.dumps(state | {"port": free_ports(1)[0]}))

    def _process(self, component: str) -> DetachedProcess:
        # The API server renames itself to "airflow api_server ...": the marker is what both names share.
        return DetachedProcess(self.folder / f"{component}.pid", marker=f"airflow {component.split('-server')[0]}")

    def _log_path(self, component: str) -> Path:
        return self.logs / f"airflow-{component}.log"


def _unhealthy(health: dict[str, str]) -> list[str]:
    """Return the components that are not healthy yet."""
    return [part.replace("_", " ") for part, state in health.items() if state != "healthy"]


def airflow_command(*arguments: str) -> list[str]:
    """Return the argument list that runs Airflow's command line with this interpreter."""
    if not (CHECKOUT / "dags").is_dir():
        raise ConfigurationError(f"{CHECKOUT} has no folder dags/: the embedded stack runs from a checkout.")
    return [sys.executable, "-m", "airflow", *arguments]
