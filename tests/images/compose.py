"""Start every service of the compose file that has our image, and render a video with them.

The images of PostgreSQL and of the S3 server come from a registry. In their place are the embedded servers of the same
versions. A service starts with its command and its environment of the file; only addresses and secrets differ.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from s2v_tasks.embedded.process import free_ports
from s2v_tasks.embedded.stack import Services
from s2v_tasks.settings import Settings
from tests.images.builder import ROOT
from tests.images.container import Container

FOLDER = ROOT / "docker" / "compose"
TAG = "localhost/s2v-airflow:compose"
_SERVICES = {"api-server": "", "scheduler": "scheduler", "dag-processor": "dag_processor", "triggerer": "triggerer"}
_START_SECONDS = 300
_RENDER_SECONDS = 600
_SMALL = {"num_clip": 1, "infer_frames": 16, "sample_steps": 2, "size": "128*128"}


class Stack:
    """The services of the compose file that have our image."""

    def __init__(self, container: Container, services: Services, settings: Settings, work: Path) -> None:
        text = (FOLDER / "compose.yaml").read_text(encoding="utf-8")
        self._services: dict[str, Any] = yaml.safe_load(text)["services"]
        ours = {name for name, service in self._services.items() if service["image"].startswith("s2v-")}
        assert ours == {"init", *_SERVICES}, f"services {sorted(ours)} have our image: expected init and {_SERVICES}"
        self._ports = free_ports(3)
        self._url = f"http://127.0.0.1:{self._ports[0]}"
        self._logs = work / "logs"
        volumes = {}
        for name in ("compile-cache", "logs", "snapshot"):
            folder = work / name
            folder.mkdir()
            os.chown(folder, 50000, 0)  # as the folders of the image, whose owner Docker gives to a new volume
            volumes[folder] = f"/opt/airflow/{name}"
        environment = self._environment(services, settings, work)
        self._container = replace(container, environment=environment, mounts=volumes, is_read_only=False)

    def render_a_video(self) -> dict[str, str]:
        """Run `init`, start the other services, and run the DAG once; return the seconds of each."""
        begun = time.monotonic()
        self.init()
        initialised = time.monotonic()
        with self.running():
            started = time.monotonic()
            self.render()
            ended = time.monotonic()
        seconds = {"init": initialised - begun, "services": started - initialised, "video": ended - started}
        return {name: f"{value:.0f} s" for name, value in seconds.items()}

    def init(self) -> None:
        """Run the service that prepares databases, bucket, samples and model."""
        service = self._services["init"]
        targets = {}
        for source, target, _ in (volume.split(":") for volume in service["volumes"] if volume.startswith(".")):
            path, place = (FOLDER / source).resolve(), self._container.root / target.removeprefix("/")
            place.mkdir() if path.is_dir() else place.touch()
            targets[path] = target
        container = replace(self._container, mounts=dict(self._container.mounts) | targets)
        container.run(*service["entrypoint"], *service["command"], timeout=_START_SECONDS)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Start the other services and wait until each of them is healthy and has the DAG."""
        with ExitStack() as cleanup:
            processes = {name: cleanup.enter_context(self._started(name)) for name in _SERVICES}
            deadline = time.monotonic() + _START_SECONDS
            while missing := self._missing():
                for name, process in processes.items():
                    assert process.poll() is None, f"{name} ended with {process.returncode}: {self._tail(name)}"
                tails = "\n".join(f"{name}: {self._tail(name)}" for name in processes)
                assert time.monotonic() < deadline, f"no {missing} after {_START_SECONDS} s\n{tails}"
                time.sleep(2)
            yield

    def render(self) -> None:
        """Run the DAG with the samples, as its form is filled, but for a small video."""
        request = yaml.safe_load((ROOT / "config" / "demo.yaml").read_text(encoding="utf-8")) | _SMALL
        run = self._call("/dags/speech_to_video/dagRuns", {"logical_date": None, "conf": request})
        path = f"/dags/speech_to_video/dagRuns/{urllib.parse.quote(run['dag_run_id'])}"
        deadline = time.monotonic() + _RENDER_SECONDS
        while (state := self._call(path)["state"]) in {"queued", "running"}:
            assert time.monotonic() < deadline, f"the run is still {state} after {_RENDER_SECONDS} s"
            time.sleep(2)
        tasks = self._call(f"{path}/taskInstances")["task_instances"]
        states = {task["task_id"]: task["state"] for task in tasks}
        assert state == "success", f"the run is {state}: {states}; scheduler: {self._tail('scheduler')}"

    def _environment(self, services: Services, settings: Settings, work: Path) -> dict[str, str]:
        """Return the environment of the file, with the secrets and the addresses of this machine."""
        assert settings.s3_access_key_id
        assert settings.s3_secret_access_key
        s3 = str(settings.s3_endpoint_url)
        secrets = _generated_secrets(work) | {
            "S3_ACCESS_KEY_ID": str(settings.s3_access_key_id),
            "S3_SECRET_ACCESS_KEY": settings.s3_secret_access_key.get_secret_value(),
        }
        entries = self._services["scheduler"]["environment"].items()
        stated = {name: re.sub(r"\$\{(\w+)[^}]*\}", lambda match: secrets[match[1]], value) for name, value in entries}
        airflow = services.postgres.ensure_database("compose_airflow")
        addresses = {
            "AIRFLOW__API__BASE_URL": self._url,
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{self._url}/execution/",
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": airflow.replace("postgresql://", "postgresql+psycopg2://"),
            "S2V_DATABASE_URL": services.postgres.ensure_database("compose_s2v"),
            "S2V_S3_ENDPOINT_URL": s3,
            "S2V_S3_PUBLIC_ENDPOINT_URL": s3,
        }
        assert addresses.keys() <= stated.keys()
        # The services share the network of this machine, where the default ports may be taken.
        ports = {
            "AIRFLOW__API__HOST": "127.0.0.1",
            "AIRFLOW__API__PORT": str(self._ports[0]),
            "AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT": str(self._ports[1]),
            "AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT": str(self._ports[2]),
        }
        return stated | addresses | ports

    @contextmanager
    def _started(self, name: str) -> Iterator[subprocess.Popen[bytes]]:
        """Run a service until the block ends: SIGTERM, then SIGKILL for it and for what it has left."""
        arguments = [*self._container.built.config["Entrypoint"], *self._services[name]["command"]]
        with (self._logs / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                self._container.command(*arguments), stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        try:
            yield process
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(60)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def _tail(self, name: str) -> str:
        return (self._logs / f"{name}.log").read_text(encoding="utf-8", errors="replace")[-1500:]

    def _missing(self) -> list[str]:
        """Return the services that are not healthy yet, or the DAG."""
        try:
            health = self._call("/monitor/health")
        except OSError:
            return ["api-server"]
        if missing := [name for name, key in _SERVICES.items() if key and health[key]["status"] != "healthy"]:
            return missing
        try:
            self._call("/dags/speech_to_video")
        except OSError:
            return ["DAG speech_to_video"]
        return []

    def _call(self, path: str, body: dict[str, Any] | None = None) -> Any:
        request = urllib.request.Request(  # noqa: S310 - the server under test
            f"{self._url}/api/v2{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
            return json.load(answer)


def _generated_secrets(work: Path) -> dict[str, str]:
    """Return what `make-env.sh` generates for a new installation."""
    program = shutil.copy(FOLDER / "make-env.sh", work)
    subprocess.run([program], check=True, stdout=subprocess.DEVNULL)
    lines = (work / ".env").read_text(encoding="utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines)
