"""Check several jobs at once on an Airflow with its default settings, while its scheduler or S3 is killed.

Run by `make test-outages`. Scheduler, triggerer, DAG processor and API server are processes of their own; the executor
is LocalExecutor with its 32 workers. Only addresses, the database, the folder of DAGs and secrets are set.
"""

# ruff: noqa: S310 - the address is that of the server under test

import json
import os
import signal
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from s2v_tasks.embedded.airflow import AirflowInstallation
from s2v_tasks.embedded.object_store import S3Server
from s2v_tasks.embedded.postgres import PostgresServer
from s2v_tasks.metadata.session import engine_from_settings
from s2v_tasks.metadata.store import MetadataStore
from s2v_tasks.schemas.preset import load_demo_request
from s2v_tasks.settings import Settings, config_dir, load_settings

pytestmark = [pytest.mark.outages, pytest.mark.timeout(3600)]

NUM_JOBS, NUM_CLIPS, MOST_SECONDS = 5, 3, 3000
NEEDED = (
    "CORE__DAGS_FOLDER", "CORE__EXECUTION_API_SERVER_URL", "CORE__FERNET_KEY", "CORE__LOAD_EXAMPLES",
    "CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS", "DATABASE__SQL_ALCHEMY_CONN", "API__BASE_URL", "API__HOST", "API__PORT",
    "API__SECRET_KEY", "API_AUTH__JWT_SECRET",
)  # fmt: skip


class Site:
    """An Airflow with default settings, and the jobs that it runs."""

    def __init__(self, airflow: AirflowInstallation, environment: dict[str, str], settings: Settings) -> None:
        self.airflow, self.environment, self.settings = airflow, environment, settings
        self.engine = engine_from_settings(settings)
        self.metadata = MetadataStore(self.engine)

    def call(self, path: str, body: dict[str, Any] | None = None, method: str = "POST") -> dict[str, Any]:
        request = urllib.request.Request(
            f"{self.airflow.url}/api/v2{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
            method="GET" if body is None else method,
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            parsed: dict[str, Any] = json.load(answer)
        return parsed

    def start_jobs(self, prefix: str, **fields: Any) -> list[str]:
        """Start five jobs of three clips at once."""
        job_ids = [f"{prefix}-{number}" for number in range(NUM_JOBS)]
        request = (
            load_demo_request(config_dir(self.settings))
            | {"num_clip": NUM_CLIPS, "infer_frames": 16, "size": "128*128"}
            | fields
        )
        for number, job_id in enumerate(job_ids):
            conf = request | {"job_id": job_id, "base_seed": number}
            self.call("/dags/speech_to_video/dagRuns", {"logical_date": None, "dag_run_id": job_id, "conf": conf})
        return job_ids

    def states(self, job_ids: list[str]) -> list[str]:
        return [self.call(f"/dags/speech_to_video/dagRuns/{job_id}")["state"] for job_id in job_ids]

    def wait_until_all_ended(self, job_ids: list[str]) -> None:
        wait_until(lambda: set(self.states(job_ids)) <= {"success", "failed"})

    def is_rendering(self, job_ids: list[str], most_done: float = 0.5) -> bool:
        """Return True if a clip is between its first solver step and this share of its steps."""
        jobs = [job for job_id in job_ids if (job := self.metadata.jobs.get(job_id))]
        return any(
            clip.status == "rendering" and 0 < (clip.progress_step or 0) < (clip.progress_steps or 0) * most_done
            for job in jobs
            for clip in job.clips
        )

    def kill_scheduler(self) -> None:
        os.kill(int((self.airflow.folder / "scheduler.pid").read_text()), signal.SIGKILL)
        wait_until(lambda: "scheduler" not in self.airflow.running())

    def check_that_nothing_was_done_twice(self, job_ids: list[str]) -> None:
        for job_id in job_ids:
            job = self.metadata.jobs.get(job_id)
            assert job is not None
            assert (job.status, job.reason) == ("succeeded", None)
            assert [clip.attempts for clip in job.clips] == [1] * NUM_CLIPS
            assert [attempt.outcome for attempt in job.attempts] == ["succeeded"] * len(job.attempts)

    def tries(self, job_ids: list[str]) -> dict[str, int]:
        """Return the number of tries of each task of a job that was tried more than once."""
        found = {}
        for job_id in job_ids:
            for task in self.call(f"/dags/speech_to_video/dagRuns/{job_id}/taskInstances?limit=100")["task_instances"]:
                if task["try_number"] != 1:
                    found[f"{job_id} {task['task_id']}[{task['map_index']}]"] = task["try_number"]
        return found


@pytest.fixture
def site(stack_home: Path, stack: Settings) -> Iterator[Site]:
    load_settings.cache_clear()
    installation = AirflowInstallation(stack_home)
    all_settings = installation.environment(PostgresServer(stack_home).ensure_database("airflow"))
    needed = {f"AIRFLOW__{name}" for name in NEEDED} | {"AIRFLOW_HOME"}
    environment = {
        name: value for name, value in all_settings.items() if not name.startswith("AIRFLOW") or name in needed
    }
    installation.start(environment)
    site = Site(installation, environment, stack)
    try:
        wait_until(lambda: "speech_to_video" in [dag["dag_id"] for dag in site.call("/dags")["dags"]])
        site.call("/dags/speech_to_video", {"is_paused": False}, "PATCH")  # as it comes, a new DAG is paused
        yield site
    finally:
        installation.stop()
        site.engine.dispose()


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + MOST_SECONDS
    while not true():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(1)


def test_five_jobs_at_once_need_one_attempt_each(site: Site) -> None:
    """No task is tried twice, because waiting clips are deferred and resumed once."""
    job_ids = site.start_jobs("at-once", sample_steps=2)
    site.wait_until_all_ended(job_ids)
    assert set(site.states(job_ids)) == {"success"}, [site.metadata.jobs.get(job_id) for job_id in job_ids]
    site.check_that_nothing_was_done_twice(job_ids)
    assert site.tries(job_ids) == {}


def test_a_scheduler_that_is_killed_costs_no_clip(site: Site) -> None:
    """A scheduler is killed and restarted in the middle of a clip: the clip continues and no job fails."""
    job_ids = site.start_jobs("killed", sample_steps=100, infer_frames=48)  # long enough to be seen
    wait_until(lambda: site.is_rendering(job_ids))
    site.kill_scheduler()
    assert site.is_rendering(job_ids, most_done=1)
    site.airflow.start(site.environment)
    site.wait_until_all_ended(job_ids)
    print(f"tried more than once: {site.tries(job_ids)}")
    assert set(site.states(job_ids)) == {"success"}, [site.metadata.jobs.get(job_id) for job_id in job_ids]
    site.check_that_nothing_was_done_twice(job_ids)


@pytest.mark.parametrize("seconds", [35, 120])
def test_an_s3_server_that_is_away_costs_no_clip(site: Site, stack_home: Path, seconds: float) -> None:
    """S3 is stopped and started in the middle of a clip: steps wait, and no clip is rendered twice."""
    job_ids = site.start_jobs(f"away-{seconds}", sample_steps=40)
    wait_until(lambda: site.is_rendering(job_ids))
    server = S3Server(stack_home)
    server.stop()
    time.sleep(seconds)  # so long the fault lasts
    server.start()
    site.wait_until_all_ended(job_ids)
    print(f"tried more than once: {site.tries(job_ids)}")
    assert set(site.states(job_ids)) == {"success"}, [site.metadata.jobs.get(job_id) for job_id in job_ids]
    site.check_that_nothing_was_done_twice(job_ids)
