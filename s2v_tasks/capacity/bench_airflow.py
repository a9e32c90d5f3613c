"""Run the jobs of a benchmark on a separate embedded Airflow, and measure its services.

Services and Airflow are those of `s2v up`, in a temporary home folder. Each step runs by its production command.
`capacity.recording` counts in the processes; `capacity.airflow_state` reads the rest.
"""

import json
import os
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from s2v_tasks.capacity.airflow_state import AirflowState, Open, Reading
from s2v_tasks.capacity.recording import CLIP_SECONDS, FOLDER, SITE
from s2v_tasks.embedded.airflow import AirflowInstallation
from s2v_tasks.embedded.guard import temporary_home
from s2v_tasks.embedded.stack import Services
from s2v_tasks.errors import TransientError
from s2v_tasks.log import get_logger
from s2v_tasks.metadata.store import open_metadata
from s2v_tasks.schemas.preset import load_demo_request
from s2v_tasks.schemas.steps import JOB_DAG
from s2v_tasks.settings import PREFIX, Settings, config_dir, load_settings

_INFER_FRAMES = 16  # the sample of speech is longer than 9 such clips, the most of a job: each job is a preview
_POLL_SECONDS = 1.0
_SETTLING_SECONDS = 30.0  # Airflow is busy after its start, which is neither idle time nor the cost of a job
_ENDED = {"success", "failed"}


@dataclass(frozen=True)
class Load:
    """Jobs of a benchmark, all submitted at once, and the limits of their Airflow.

    `clip_seconds`: simulated time of a clip; None: the tiny networks render it.
    """

    jobs: int
    clips: int
    clip_seconds: float | None = 5.0
    clips_per_pod: int = 1
    sample_steps: int = 2
    renders: int = 1  # S2V_LOCAL_RENDERS
    workers: int = 4  # worker slots of LocalExecutor
    max_running_jobs: int = 16
    idle_seconds: float = 30.0  # before the jobs, to measure an idle Airflow
    most_seconds: float = 3600.0

    def job_ids(self) -> list[str]:
        """Return the ids of the jobs in the order of their submission."""
        return [f"bench-{number:04}" for number in range(self.jobs)]

    def request(self, number: int, folder: Path) -> dict[str, Any]:
        """Return the request of a job. Each job has another prompt, so that none reuses artifacts of another."""
        return load_demo_request(folder) | {
            "prompt": f"A drawn portrait speaks, number {number}.",
            "num_clip": self.clips,
            "infer_frames": _INFER_FRAMES,
            "sample_steps": self.sample_steps,
            "size": "128*128",
            "base_seed": number,
            "clips_per_pod": self.clips_per_pod,
        }


@contextmanager
def bench_airflow(load: Load) -> Iterator["BenchAirflow"]:
    """Start services and Airflow for a benchmark; stop and delete them afterwards."""
    with temporary_home() as home, _environment(home, load):
        services = Services(home)
        with services.in_use() as settings:
            airflow = BenchAirflow(services, settings, load)
            try:
                airflow.start()
                yield airflow
            finally:
                airflow.installation.stop()


@contextmanager
def _environment(home: Path, load: Load) -> Iterator[None]:
    """Set the variables of all processes of the benchmark, this one included; restore them afterwards."""
    site = home / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(SITE)
    given = {
        f"{PREFIX}HOME": str(home),
        f"{PREFIX}LOCAL_RENDERS": str(load.renders),
        f"{PREFIX}MAX_RUNNING_JOBS": str(load.max_running_jobs),
        FOLDER: str(site),
        "PYTHONPATH": os.pathsep.join([str(site), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]).rstrip(":"),
    }
    if load.clip_seconds is not None:
        given[CLIP_SECONDS] = str(load.clip_seconds)
    before = dict(os.environ)
    os.environ.update(given)
    load_settings.cache_clear()
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
        load_settings.cache_clear()


class BenchAirflow:
    """Services and Airflow of one benchmark."""

    def __init__(self, services: Services, settings: Settings, load: Load) -> None:
        self.settings, self._load = settings, load
        self.installation = AirflowInstallation(services.home)
        self.folder = services.home / "site"
        self._database = services.postgres.ensure_database("airflow")
        self.state = AirflowState(self._database, self.installation.folder)

    def start(self) -> None:
        """Start Airflow and wait until it is idle."""
        environment = self.installation.environment(self._database)
        self.installation.start(environment | {"AIRFLOW__CORE__PARALLELISM": str(self._load.workers)})
        time.sleep(_SETTLING_SECONDS)

    def submit(self) -> None:
        """Submit all jobs of the load."""
        for number, job_id in enumerate(self._load.job_ids()):
            self._trigger(job_id, self._load.request(number, config_dir(self.settings)) | {"job_id": job_id})

    def wait(self) -> tuple[list[dict[str, Any]], Open]:
        """Return the runs when all of them have ended, and the most connections and triggers until then."""
        deadline, ended, most = time.monotonic() + self._load.most_seconds, 0, Open({}, 0)
        while True:
            most = most.most(self.state.open())
            runs = self.state.rows(
                "SELECT run_id, state, queued_at, start_date, end_date FROM dag_run WHERE dag_id = %s"
            )
            states = Counter(str(run["state"]) for run in runs)
            if ended != (ended := sum(states[state] for state in _ENDED)):
                get_logger().info("bench_runs", **states)
            if ended == self._load.jobs:
                break
            if time.monotonic() > deadline:
                raise TransientError(f"{dict(states)} after {self._load.most_seconds:.0f} s: expected all runs to end.")
            time.sleep(_POLL_SECONDS)
        if failed := [run["run_id"] for run in runs if run["state"] != "success"]:
            with open_metadata(self.settings) as metadata:
                job = metadata.jobs.get(failed[0])
            raise TransientError(f"{len(failed)} jobs failed, the first is {failed[0]}: {job and job.reason}.")
        return runs, most

    def _trigger(self, job_id: str, conf: dict[str, Any]) -> None:
        request = urllib.request.Request(  # noqa: S310 - the server of this benchmark
            f"{self.installation.url}/api/v2/dags/{JOB_DAG}/dagRuns",
            data=json.dumps({"dag_run_id": job_id, "logical_date": None, "conf": conf}).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=120):  # noqa: S310
            pass

    def attempts(self) -> dict[str, list[tuple[int, float, float]]]:
        """Return the attempts at clips of each job: clip, start, end."""
        found = {}
        with open_metadata(self.settings) as metadata:
            for job_id in self._load.job_ids():
                job = metadata.jobs.get(job_id)
                found[job_id] = [
                    (attempt.clip_index, attempt.started_at.timestamp(), attempt.finished_at.timestamp())
                    for attempt in (job.attempts if job else ())
                    if attempt.clip_index is not None and attempt.finished_at is not None
                ]
        return found

    def has_ended(self) -> bool:
        """Return True if all runs have ended."""
        return all(run["state"] in _ENDED for run in self.state.rows("SELECT state FROM dag_run WHERE dag_id = %s"))

    def api_server(self) -> psutil.Process:
        """Return the process of the API server."""
        return psutil.Process(int((self.installation.folder / "api-server.pid").read_text()))

    def loops(self, begin: float, end: float) -> list[dict[str, float]]:
        """Return the loops of the scheduler that began between two moments."""
        return [loop for loop in lines(self.folder / "loops.jsonl") if begin <= loop["at"] <= end]


@dataclass(frozen=True)
class Measured:
    """All records of a benchmark."""

    load: Load
    steps: list[dict[str, Any]]  # records of `StepRecorder`
    loops: list[dict[str, float]]  # of the scheduler, while the jobs ran
    tasks: list[dict[str, Any]]  # rows of Airflow's task instances
    runs: list[dict[str, Any]]  # rows of its DAG runs
    num_triggers: int
    api_log: list[str]
    attempts: dict[str, list[tuple[int, float, float]]]  # job → clip, start, end
    idle: Reading
    busy: Reading
    open_idle: Open
    open_busy: Open  # the most while the jobs ran


def measure(load: Load) -> Measured:
    """Run the jobs to their end; TransientError if they do not end in time or one of them fails."""
    with bench_airflow(load) as airflow:
        began = airflow.state.read()
        time.sleep(load.idle_seconds)
        before = airflow.state.read()
        triggers, open_idle = airflow.state.num_triggers(), airflow.state.open()
        airflow.submit()
        runs, open_busy = airflow.wait()
        after = airflow.state.read()
        return Measured(
            load=load,
            steps=lines(airflow.folder / "steps.jsonl"),
            loops=airflow.loops(before.at, after.at),
            tasks=airflow.state.rows("SELECT * FROM task_instance WHERE dag_id = %s"),
            runs=runs,
            num_triggers=airflow.state.num_triggers() - triggers,
            api_log=(airflow.installation.logs / "airflow-api-server.log").read_text(errors="replace").splitlines(),
            attempts=airflow.attempts(),
            idle=before.since(began),
            busy=after.since(before),
            open_idle=open_idle,
            open_busy=open_busy,
        )


def lines(path: Path) -> list[dict[str, Any]]:
    """Return the records of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
