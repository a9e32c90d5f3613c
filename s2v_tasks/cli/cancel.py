"""`s2v cancel`: end a job and keep its finished clips."""

import time
from typing import TYPE_CHECKING, Annotated

import typer

from s2v_tasks.cli import app
from s2v_tasks.cli.terminal import PEOPLE, AsJson, console, open_metadata_store, print_json
from s2v_tasks.cli.watch import unknown_job
from s2v_tasks.errors import PermanentError, TransientError
from s2v_tasks.schemas.job import JobStatus
from s2v_tasks.settings import load_settings

if TYPE_CHECKING:
    from s2v_tasks.metadata.store import MetadataStore

_WAIT_SECONDS = 30.0
_POLL_SECONDS = 0.5


@app.command(rich_help_panel=PEOPLE)
def cancel(
    job_id: Annotated[str, typer.Argument(help="The job.")],
    as_json: AsJson = False,
) -> None:
    """Cancel a job: its processes and pods stop. Finished clips are kept for a later start or rerun.

    Exit codes: 0 the job is cancelled, 65 it had ended before, 75 its end is not confirmed yet.
    """
    with open_metadata_store() as metadata:
        status = metadata.jobs.request_cancel(job_id)
        if status in {JobStatus.SUCCEEDED, JobStatus.FAILED}:
            raise PermanentError(f"Job {job_id} has {status}: there is nothing to cancel.")
        ended_runs = _end_runs(job_id)
        if status is None and not ended_runs:
            raise unknown_job(job_id)
        reason = "It ended before its first step." if status is None else _await_end(metadata, job_id, ended_runs)
    outcome = {"job_id": job_id, "status": JobStatus.CANCELLED, "reason": reason, "ended_runs": ended_runs}
    if as_json:
        print_json(outcome)
    else:
        console.print(f"[bold]{job_id}[/bold] cancelled: {reason}")


def _end_runs(job_id: str) -> list[str]:
    """End the job's runs in Airflow and return their ids. The steps of the job end without Airflow, too."""
    from s2v_tasks.cli.airflow_api import AirflowApi, job_of_run

    settings = load_settings()
    if settings.airflow_url is None:
        return []
    api = AirflowApi.from_settings(settings)
    try:
        runs = [str(run["dag_run_id"]) for run in api.active_runs() if job_of_run(run) == job_id]
        for run_id in runs:
            api.fail(run_id)
    except TransientError as error:
        typer.echo(f"{error} The steps of the job end without it.", err=True)
        return []
    return runs


def _await_end(metadata: "MetadataStore", job_id: str, ended_runs: list[str]) -> str:
    """Return the reason of the cancelled job; TransientError if no step confirms the cancel in time."""
    deadline = time.monotonic() + _WAIT_SECONDS
    while True:
        job = metadata.jobs.get(job_id)
        assert job is not None  # noqa: S101 - it existed a moment ago
        if job.status == JobStatus.QUEUED and job.dag_run_id is None and not ended_runs:
            metadata.jobs.cancel(job_id)  # it waits in the queue: no step runs that could confirm the cancel
        elif job.status == JobStatus.CANCELLED:
            return job.reason or ""
        elif job.has_ended:
            raise PermanentError(f"Job {job_id} has {job.status} before it could be cancelled.")
        elif time.monotonic() > deadline:
            raise TransientError(
                f"Job {job_id} is being cancelled, but no step has confirmed it within "
                f"{_WAIT_SECONDS:.0f} s. Its next step does not start. Check with `s2v job {job_id}`."
            )
        time.sleep(_POLL_SECONDS)
