"""`s2v retry`: restart failed or cancelled jobs, also many at once; finished clips are reused."""

from typing import Annotated, Any

import typer

from s2v_tasks.cli import app
from s2v_tasks.cli.request_options import parse_labels
from s2v_tasks.cli.submit import start
from s2v_tasks.cli.terminal import PEOPLE, AsJson, console, open_metadata_store, print_json
from s2v_tasks.errors import PermanentError
from s2v_tasks.schemas.job import RestartableStatus
from s2v_tasks.schemas.request_parsing import parse_request
from s2v_tasks.settings import load_settings

_AT_MOST = 10_000


@app.command(rich_help_panel=PEOPLE)
def retry(
    job_id: Annotated[list[str] | None, typer.Argument(help="Jobs. Default: all jobs that match the options.")] = None,
    status: Annotated[RestartableStatus, typer.Option(help="Only jobs with this status.")] = RestartableStatus.FAILED,
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
    outcomes: list[dict[str, Any]] = []
    for name, request in found:
        outcome: dict[str, Any] = {"job_id": name, "started": False}
        if api is not None:
            try:
                outcome |= start(api, name, parse_request(request))
            except PermanentError as error:
                outcome |= {"refused": str(error)}
        outcomes.append(outcome)
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


def _find(
    job_ids: list[str], status: str, code: int | None, labels: dict[str, str]
) -> list[tuple[str, dict[str, Any]]]:
    """Return jobs with their requests, the oldest first."""
    with open_metadata_store() as metadata:
        jobs = metadata.jobs.recent(_AT_MOST, status=status, labels=labels)
        if unknown := sorted(set(job_ids) - {job.job_id for job in jobs}):
            raise PermanentError(f"{', '.join(unknown)}: expected jobs that are {status}; see `s2v jobs`.")
        chosen = [job for job in reversed(jobs) if not job_ids or job.job_id in job_ids]
        found = []
        for job in chosen:
            # Only the record of one job has its events, by which its exit code is known.
            full = metadata.jobs.get(job.job_id) if code is not None else job
            if full is not None and (code is None or full.exit_code == code):
                request = {name: value for name, value in (full.request or {}).items() if value is not None}
                found.append((job.job_id, request))
        return found
