"""The demo: run the DAG once on this machine, from S3 to S3, and download its video.

It is the same DAG, the same steps and the same services as `s2v up`; only the scheduler is replaced by Airflow's test
loop (`airflow dags test`), with a separate metadata database.
"""

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from s2v_tasks.embedded.airflow import AirflowInstallation, airflow_command
from s2v_tasks.embedded.stack import Services
from s2v_tasks.errors import PermanentError, TransientError
from s2v_tasks.metadata.store import open_metadata
from s2v_tasks.metadata.tables import Job
from s2v_tasks.parent_death import end_with_parent
from s2v_tasks.schemas.catalogue import load_catalogue
from s2v_tasks.schemas.events import JobEvent
from s2v_tasks.schemas.job import JobStatus
from s2v_tasks.schemas.preset import load_demo_request
from s2v_tasks.schemas.report import Report
from s2v_tasks.schemas.request_parsing import parse_request
from s2v_tasks.schemas.steps import JOB_DAG, STAGE_INPUTS
from s2v_tasks.settings import Settings, config_dir
from s2v_tasks.storage.artifacts import ArtifactStore
from s2v_tasks.storage.inputs import upload_input
from s2v_tasks.storage.layout import JobLayout
from s2v_tasks.storage.result_files import fetch_result
from s2v_tasks.storage.s3 import ObjectStore

console = Console(soft_wrap=True, width=None if os.isatty(1) else 1000)  # in a file each row is one line
progress = Console(soft_wrap=True, stderr=True)


@dataclass(frozen=True)
class DemoInputs:
    """Local files that replace the samples."""

    image: Path | None = None
    audio: Path | None = None
    pose_video: Path | None = None


def run_demo(
    home: Path, inputs: DemoInputs, fields: dict[str, Any], *, out_dir: Path, job_id: str | None = None
) -> int:
    """Make one video; return the exit code of the failed step, 0 if none failed.

    Only the result is printed on stdout. Progress and the reason of a failure go to stderr.
    `fields` override the example request (config/demo.yaml). The same `job_id` continues or reuses an earlier job.
    """
    started, began_at = time.monotonic(), datetime.now(UTC)
    job_id = JobLayout(job_id or new_job_id(began_at)).job_id
    services = Services(home)
    with services.in_use() as settings:
        request = load_demo_request(config_dir(settings)) | fields | _uploaded(inputs, settings, job_id)
        _check_id(job_id, request, settings)
        progress.print(f"job {job_id}: {request['image_uri']} + {request['audio_uri']}", markup=False)
        if _is_acceptable(request, settings):
            _run_dag(services, {**request, "job_id": job_id})
        else:
            # Airflow would refuse it before any task runs. The first step stores the refusal as the reason of the job.
            _run_first_step(request, job_id)
        _check_id(job_id, request, settings)  # another demo may have taken it first
        job = _job(job_id, settings, since=began_at)
        if job is None or job.status != JobStatus.SUCCEEDED:
            return _report_failure(job, services)
        video, table = _collect(job, settings, out_dir)
    console.print(table)
    console.print(f"[bold]{video}[/bold]  made in {time.monotonic() - started:.0f} s")
    return 0


def new_job_id(began_at: datetime) -> str:
    """Return a job id that is unique, also among demos that start in the same second."""
    return f"demo-{began_at:%Y%m%d-%H%M%S}-{secrets.token_hex(4)}"


def _check_id(job_id: str, request: dict[str, Any], settings: Settings) -> None:
    """Raise JobTakenError if the id belongs to a job with another request."""
    with open_metadata(settings) as metadata:
        metadata.jobs.check_request(job_id, request)


def _is_acceptable(request: dict[str, Any], settings: Settings) -> bool:
    try:
        load_catalogue(config_dir(settings)).check(parse_request(request))
    except PermanentError:
        return False
    return True


def _run_first_step(request: dict[str, Any], job_id: str) -> None:
    command = [sys.executable, "-m", "s2v_tasks.cli", STAGE_INPUTS.command, "--job-id", job_id]
    done = subprocess.run(
        [*command, "--request-json", json.dumps(request)], capture_output=True, text=True, check=False
    )
    if not done.returncode:
        raise TransientError("stage-inputs accepted a request that its own schema refuses.")


def _run_dag(services: Services, run_conf: dict[str, Any]) -> None:
    """Run the DAG to its end. Print the log lines of the steps; write those of Airflow to a file."""
    airflow = AirflowInstallation(services.home, "airflow-demo")
    environment = airflow.environment(services.postgres.ensure_database("airflow_demo"))
    environment |= {"AIRFLOW__LOGGING__JSON_LOGS": "True"}
    airflow.migrate(environment)
    log_path = airflow.logs / f"{run_conf['job_id']}.log"
    command = airflow_command("dags", "test", JOB_DAG, "--conf", json.dumps(run_conf))
    with (
        log_path.open("a", encoding="utf-8") as log,
        subprocess.Popen(
            command,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # After SIGTERM Airflow retries the task. After SIGKILL the step ends in order, and nothing is retried.
            preexec_fn=partial(end_with_parent, signal.SIGKILL, os.getpid()),
        ) as process,
    ):
        assert process.stdout is not None  # noqa: S101 - opened as a pipe above
        for line in process.stdout:
            log.write(line)
            if shown := _step_line(line):
                progress.print(shown, markup=False)


def _step_line(line: str) -> str | None:
    """Return the log line of a step from one JSON line of Airflow's log; None for other lines."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return str(record["event"]) if str(record.get("logger", "")).endswith(".StepOperator") else None


def _job(job_id: str, settings: Settings, *, since: datetime) -> Job | None:
    """Return the job with its events since a time; None if it has none."""
    with open_metadata(settings) as metadata:
        job = metadata.jobs.get(job_id)
    events = tuple(event for event in job.events if event.at >= since) if job else ()
    return replace(job, events=events) if job and events else None


def _uploaded(inputs: DemoInputs, settings: Settings, job_id: str) -> dict[str, str]:
    """Upload the local files and return their URIs in S3; a missing file fails a new job, which stores the reason."""
    files = {"image_uri": inputs.image, "audio_uri": inputs.audio, "pose_video_uri": inputs.pose_video}
    try:
        store = ObjectStore.from_settings(settings)
        return {field: upload_input(store, path) for field, path in files.items() if path is not None}
    except PermanentError as error:
        with open_metadata(settings) as metadata:
            if metadata.jobs.get(job_id) is None:
                metadata.jobs.fail(job_id, str(error))
        raise


def _report_failure(job: Job | None, services: Services) -> int:
    """Print the reason of the failure and return its exit code."""
    logs = services.home / "logs"
    if job is None:
        progress.print(f"No step of the job ran; see {logs}.")
        return TransientError.exit_code
    progress.print(f"{job.status}: {job.reason}", style="red", markup=False)
    progress.print(f"log: {logs / job.job_id}.log")
    return job.exit_code


def _collect(job: Job, settings: Settings, out_dir: Path) -> tuple[Path, Table]:
    """Copy video, report and contact sheet to `out_dir`; return the path and a table of the video's properties."""
    fetched = fetch_result(ArtifactStore(ObjectStore.from_settings(settings)), job.job_id, out_dir)
    result = fetched.facts
    report = Report.model_validate_json(fetched.report.read_bytes())
    table = Table(title=job.job_id, show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    table.add_row("clips", ", ".join(f"{c.start_frame}..{c.end_frame}{' reused' * c.reused}" for c in job.clips))
    table.add_row("frames", f"{result['num_frames']} at 16 fps = {result['duration_seconds']:.3f} s")
    table.add_row("size", f"{result['width']}*{result['height']}, {result['size_bytes']} bytes")
    table.add_row("sha256", result["sha256"])
    table.add_row("checks", f"{len(report.checks) - len(report.failures)} of {len(report.checks)} passed")
    table.add_row("seconds per step", "\n".join(_step_seconds(job)))
    table.add_row("published", result["video_uri"])
    table.add_row("report", str(fetched.report))
    table.add_row("contact sheet", str(fetched.contact_sheet))
    return fetched.video, table


def _step_seconds(job: Job) -> Iterator[str]:
    """Yield the wall seconds of the latest finished run of each step, in the order of the pipeline."""
    latest: dict[tuple[str, int | None], float] = {}
    for event in job.events:
        if event.event == JobEvent.STEP_FINISHED:
            latest[event.step or "", event.clip_index] = event.detail["seconds"]
    for (step, clip_index), seconds in latest.items():
        yield f"{seconds:7.1f}  {step}{'' if clip_index is None else f' {clip_index}'}"
