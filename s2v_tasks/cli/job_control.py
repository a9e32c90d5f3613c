"""`s2v cancel`, `s2v retry`, `s2v rerun`: end a job, restart it, or make a new job from it. Finished clips are kept."""

import json
import time
from operator import attrgetter
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from s2v_tasks.cli import app
from s2v_tasks.cli.request_options import BOOKKEEPING, QUALITY, SAMPLING, flag_of, parse_labels, request_options
from s2v_tasks.cli.submit import JobIdOption, SubmitOptions, Unpause, Via, start, submit_request
from s2v_tasks.cli.terminal import PEOPLE, AsJson, console, open_metadata_store, print_json
from s2v_tasks.cli.watch import Watch, unknown_job
from s2v_tasks.errors import ConfigurationError, PermanentError, TransientError
from s2v_tasks.schemas.job import JobStatus, RestartableStatus
from s2v_tasks.schemas.plan import Plan
from s2v_tasks.schemas.request import Request
from s2v_tasks.schemas.request_parsing import parse_request
from s2v_tasks.schemas.rerun import changes_something, rerun_job_id, rerun_request
from s2v_tasks.settings import load_settings

if TYPE_CHECKING:
    from s2v_tasks.cli.airflow_api import AirflowApi
    from s2v_tasks.metadata.store import MetadataStore
    from s2v_tasks.metadata.tables import Job
    from s2v_tasks.storage.s3 import ObjectStore

_CANCEL_WAIT_SECONDS = 30.0
_CANCEL_POLL_SECONDS = 0.5
_MOST_RETRIED = 10_000


@app.command(rich_help_panel=PEOPLE)
def cancel(
    job_id: Annotated[str, typer.Argument(help="The job.")],
    as_json: AsJson = False,
) -> None:
    """Cancel a job: its processes and pods stop. Finished clips are kept for a later start or rerun.

    A job that has failed is cancelled too while its run still renders other clips. If it waits to start again, only
    the new start is cancelled.

    Exit codes: 0: the job or its new start is cancelled; 65: it had ended before; 75: its end is not confirmed yet.
    """
    with open_metadata_store() as metadata:
        status = metadata.jobs.request_cancel(job_id)
        has_ended = status in {JobStatus.SUCCEEDED, JobStatus.FAILED}
        if status is None or has_ended:  # only Airflow knows whether there is a run to cancel
            ended_runs = _end_runs(job_id, metadata.queue.run_of(job_id))
        else:
            ended_runs = _try_to_end_runs(job_id)
        if status is None and not ended_runs:
            raise unknown_job(job_id)
        if has_ended and not ended_runs:
            raise PermanentError(f"Job {job_id} has {status}: there is nothing to cancel.")
        if status is None:
            reason = "It ended before its first step."
        elif has_ended:
            reason = f"Its new start ended before its first step. The job is unchanged: it has {status}."
        else:
            status, reason = JobStatus.CANCELLED, _await_end(metadata, job_id, ended_runs)
    outcome = {"job_id": job_id, "status": status or JobStatus.CANCELLED, "reason": reason, "ended_runs": ended_runs}
    if as_json:
        print_json(outcome)
    else:
        console.print(f"[bold]{job_id}[/bold] cancelled: {escape(reason)}")


def _end_runs(job_id: str, ended_run: str | None = None) -> list[str]:
    """End the job's active runs in Airflow, and return their ids.

    `ended_run`: the run of a job that has ended.
    """
    from s2v_tasks.cli.airflow_api import AirflowApi
    from s2v_tasks.cli.awaited_runs import runs_to_come

    settings = load_settings()
    if settings.airflow_url is None:
        return []
    api = AirflowApi.from_settings(settings)
    runs = [str(run["dag_run_id"]) for run in runs_to_come(api, job_id, ended_run)]
    for run_id in runs:
        api.fail(run_id)
    return runs


def _try_to_end_runs(job_id: str) -> list[str]:
    """End the active runs of a job that has not ended; its steps also end without an answer of Airflow."""
    try:
        return _end_runs(job_id)
    except (ConfigurationError, TransientError) as error:
        typer.echo(f"{error} No run in Airflow was ended; steps that run stop by themselves.", err=True)
        return []


def _await_end(metadata: "MetadataStore", job_id: str, ended_runs: list[str]) -> str:
    """Return the reason of the cancelled job; TransientError if no step confirms the cancel in time."""
    deadline = time.monotonic() + _CANCEL_WAIT_SECONDS
    while True:
        job = metadata.jobs.get(job_id)
        assert job is not None  # noqa: S101 - it existed a moment ago
        if job.status == JobStatus.QUEUED and job.dag_run_id is None and not ended_runs:
            metadata.jobs.cancel(job_id)  # the job waits in the queue: no step runs that could confirm the cancellation
        elif job.status == JobStatus.CANCELLED:
            return job.reason or ""
        elif job.has_ended:
            raise PermanentError(f"Job {job_id} has {job.status} before it could be cancelled.")
        elif time.monotonic() > deadline:
            raise TransientError(
                f"Job {job_id} is being cancelled, but no step has confirmed it within "
                f"{_CANCEL_WAIT_SECONDS:.0f} s. Its next step does not start. Check with `s2v job {job_id}`."
            )
        time.sleep(_CANCEL_POLL_SECONDS)


@app.command(rich_help_panel=PEOPLE)
def retry(
    job_id: Annotated[list[str] | None, typer.Argument(help="Jobs. Default: all jobs that match the options.")] = None,
    status: Annotated[
        RestartableStatus | None,
        typer.Option(help="Only jobs with this status. Default: failed; for named jobs failed or cancelled."),
    ] = None,
    code: Annotated[
        int | None,
        typer.Option(help="Only jobs whose last failed step had this exit code, such as 75 after an outage."),
    ] = None,
    label: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="Only jobs with this label.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list them.")] = False,
    as_json: AsJson = False,
) -> None:
    """Restart failed or cancelled jobs, for example after an outage: `s2v retry --status failed --code 75`.

    Each job keeps its request and its finished clips; the oldest starts first. If Airflow refuses a job, the others
    are started, and the exit code is 65.
    """
    from s2v_tasks.cli.airflow_api import AirflowApi

    found = _find(job_id or [], status, code, parse_labels(label or []))
    api = None if dry_run else AirflowApi.from_settings(load_settings())
    outcomes: list[dict[str, Any]] = [
        {"job_id": name, "started": False} | (_restart(api, name, request) if api else {}) for name, request in found
    ]
    if as_json:
        print_json(outcomes, indent=None)
    else:
        for outcome in outcomes:
            state = outcome.get("refused") or ("started" if outcome["started"] else outcome.get("run_state", "found"))
            console.print(f"{outcome['job_id']} {state}", markup=False)
        console.print(
            f"{sum(outcome['started'] for outcome in outcomes)} of {len(outcomes)} jobs started", markup=False
        )
    if any("refused" in outcome for outcome in outcomes):
        raise typer.Exit(PermanentError.exit_code)


def _restart(api: "AirflowApi", job_id: str, request: dict[str, Any]) -> dict[str, Any]:
    try:
        return start(api, job_id, parse_request(request))
    except ConfigurationError:
        raise  # it concerns every job
    except PermanentError as error:
        return {"refused": str(error)}


def _find(
    job_ids: list[str], status: RestartableStatus | None, code: int | None, labels: dict[str, str]
) -> list[tuple[str, dict[str, Any]]]:
    """Return jobs with their requests, the oldest first."""
    with open_metadata_store() as metadata:
        if job_ids:
            jobs = [job for job in _named(metadata, job_ids, status) if labels.items() <= job.labels.items()]
        else:
            jobs = metadata.jobs.recent(_MOST_RETRIED, status=status or RestartableStatus.FAILED, labels=labels)[::-1]
        found = []
        for job in jobs:
            # The exit code is known from the events, which only the record of a single job has.
            full = metadata.jobs.get(job.job_id) if code is not None else job
            if full is not None and (code is None or full.exit_code == code):
                request = {name: value for name, value in (full.request or {}).items() if value is not None}
                found.append((job.job_id, request))
        return found


def _named(metadata: "MetadataStore", job_ids: list[str], status: RestartableStatus | None) -> "list[Job]":
    """Return these jobs, the oldest first. PermanentError names those that do not exist or have another status.

    `status` None: failed or cancelled.
    """
    allowed = [status] if status else list(RestartableStatus)
    jobs = {job_id: metadata.jobs.get(job_id) for job_id in job_ids}
    found = [job for job in jobs.values() if job is not None and job.status in allowed]
    if len(found) < len(jobs):
        refused = [
            f"{job_id} {'does not exist' if job is None else f'is {job.status}'}"
            for job_id, job in jobs.items()
            if job not in found
        ]
        raise PermanentError(
            f"{', '.join(refused)}: expected jobs that are {' or '.join(allowed)}. `s2v jobs` lists all jobs."
        )
    return sorted(found, key=attrgetter("created_at"))


@app.command(rich_help_panel=PEOPLE)
@request_options("prompt", "preset", *SAMPLING, *QUALITY, *BOOKKEEPING, "max_gpu_seconds", "max_cost")
def rerun(
    parent: Annotated[str, typer.Argument(metavar="JOB_ID", help="The earlier job, which is not changed.")],
    fields: dict[str, Any],
    from_clip: Annotated[int, typer.Option(min=0, help="Index, from 0, of the first clip that is rendered again.")] = 0,
    job_id: JobIdOption = None,
    via: Via = "api",
    watch: Watch = False,
    unpause: Unpause = False,
    as_json: AsJson = False,
) -> None:
    """Make a video again with another prompt, seed or sampling; clips before --from-clip are reused.

    Frames and size come from the earlier job, and seeds too unless they are changed. --preset takes the sampling of a
    preset: `--preset high` turns a preview into the final video. A repeated rerun is the same job.
    """
    from s2v_tasks.planning.rerun import check_from_clip
    from s2v_tasks.storage.s3 import ObjectStore

    store = ObjectStore.from_settings(load_settings())
    earlier, plan = _request(store, parent), _plan(store, parent)
    check_from_clip(plan, from_clip)
    if not changes_something(earlier, plan, fields, from_clip):
        options = ", ".join(map(flag_of, ("prompt", "preset", *SAMPLING)))
        raise PermanentError(
            f"Nothing is changed: the clips of job {plan.job_id} from {from_clip} on would be rendered again "
            f"unchanged. Change {options}, or download the video with `s2v fetch {plan.job_id}`."
        )
    request = rerun_request(parent, earlier, fields, from_clip)
    name = job_id or rerun_job_id(parent, request)
    raise typer.Exit(submit_request(name, request, SubmitOptions(via, watch=watch, unpause=unpause, as_json=as_json)))


def _request(store: "ObjectStore", job_id: str) -> Request:
    """Return the request of a job whose inputs were staged."""
    from s2v_tasks.storage.layout import JobLayout

    data = store.find_bytes(JobLayout(job_id).request)
    if data is None:
        raise PermanentError(
            f"Job {job_id!r} has no inputs in S3: expected a job whose first step has finished; `s2v jobs` lists all "
            f"jobs, and `s2v retry {job_id}` starts a failed one again."
        )
    return parse_request(json.loads(data))


def _plan(store: "ObjectStore", job_id: str) -> Plan:
    """Return the plan of a job."""
    from s2v_tasks.storage.layout import JobLayout

    data = store.find_bytes(JobLayout(job_id).plan)
    if data is None:
        raise PermanentError(f"Job {job_id} has no plan: expected a job that was planned; `s2v job {job_id}` shows it.")
    return Plan.model_validate_json(data)
