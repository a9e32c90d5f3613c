"""Airflow as the tests use it: its REST API, and kills of the processes of an embedded one."""

# ruff: noqa: S310 - the address is that of the server under test

import json
import os
import signal
import time
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from s2v_tasks.embedded.airflow import AirflowInstallation
from s2v_tasks.embedded.checkout import CHECKOUT

ENDED = {"success", "failed"}
LONGEST_SECONDS = 2400  # of a run, on a machine that is busy with other work
SMALL: dict[str, Any] = {"num_clip": 3, "infer_frames": 16, "sample_steps": 2, "size": "128*128", "base_seed": 7}
LONG = {"sample_steps": 6}  # a clip that is held at its third step has some before it


def small_request() -> dict[str, Any]:
    """Return the request of the demo with three clips of the smallest size."""
    return yaml.safe_load((CHECKOUT / "config/demo.yaml").read_text()) | SMALL


class Airflow:
    """A running Airflow, by its REST API."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.headers = {"Content-Type": "application/json"}

    def log_in(self, username: str, password: str) -> None:
        """Make all later requests with the token of an account."""
        token = self._send("/auth/token", {"username": username, "password": password})["access_token"]
        self.headers["Authorization"] = f"Bearer {token}"

    def call(self, path: str, body: dict[str, Any] | None = None, method: str | None = None) -> Any:
        return self._send(f"/api/v2{path}", body, method)

    def _send(self, path: str, body: dict[str, Any] | None, method: str | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=data, headers=self.headers, method=method)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    def trigger(self, **fields: Any) -> str:
        """Start a run; return its path in the API."""
        body = {"logical_date": None, "conf": small_request() | fields}
        run_id = self.call("/dags/speech_to_video/dagRuns", body)["dag_run_id"]
        return f"/dags/speech_to_video/dagRuns/{urllib.parse.quote(run_id)}"

    def slots(self, number: int) -> None:
        """Set the number of pods that may run at once."""
        self.call("/pools/gpu", {"name": "gpu", "slots": number, "include_deferred": True}, "PATCH")

    def ended(self, run: str) -> str | None:
        """Return the state of a run that has ended, else None."""
        state = str(self.call(run)["state"])
        return state if state in ENDED else None

    def outcome(self, run: str, seconds: float = LONGEST_SECONDS) -> str:
        """Return the state of a run once it has ended."""
        return str(self.wait(lambda: self.ended(run), seconds))

    def wait(self, what: Callable[[], Any], seconds: float = 900, every: float = 0.5) -> Any:
        """Return the first true value of `what`."""
        deadline = time.monotonic() + seconds
        while not (value := what()):
            assert time.monotonic() < deadline, f"still {value} after {seconds} s"
            time.sleep(every)
        return value

    def tasks(self, run: str) -> list[dict[str, Any]]:
        return list(self.call(f"{run}/taskInstances?limit=200")["task_instances"])

    def task(self, run: str, task_id: str, map_index: int = -1) -> dict[str, Any]:
        return next(t for t in self.tasks(run) if (t["task_id"], t["map_index"]) == (task_id, map_index))

    def log(self, run: str, task_id: str, map_index: int = -1) -> str:
        """Return the log of all tries of a task."""
        last = self.task(run, task_id, map_index)["try_number"]
        text = ""
        for number in range(1, last + 1):
            answer = self.call(f"{run}/taskInstances/{task_id}/logs/{number}?map_index={map_index}&full_content=true")
            text += "\n".join(json.dumps(line) for line in answer["content"]) + "\n"  # with the details of errors
        return text


class EmbeddedAirflow(Airflow):
    """The Airflow of `make up`, whose processes a test can kill."""

    def __init__(self, installation: AirflowInstallation, environment: dict[str, str]) -> None:
        super().__init__(installation.url)
        self.installation = installation
        self.environment = environment

    def kill(self, component: str) -> None:
        """Kill a component and all processes that it has started."""
        pids = [int((self.installation.folder / f"{component}.pid").read_text())]
        for pid in pids:
            for task in Path(f"/proc/{pid}/task").glob("*/children"):
                pids += [int(child) for child in task.read_text().split()]
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        # `revive` must find it gone, with the last of its threads: a leader that has ended is waited for by its parent.
        self.wait(lambda: component not in self.installation.running() and not any(map(_runs, pids)), 30)

    def revive(self) -> None:
        """Start each component that does not run."""
        self.installation.start(self.environment)


def _runs(pid: int) -> bool:
    """Return True if a process exists and is no zombie."""
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
