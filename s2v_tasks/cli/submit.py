"""`s2v plan` and `s2v submit`: show the plan of a video, and submit it from local files or objects in S3.

A repeated request is the same job.
"""

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.markup import escape

from s2v_tasks.cli import app
from s2v_tasks.cli.request_options import BOOKKEEPING, PLANNING, request_options
from s2v_tasks.cli.terminal import PEOPLE, AsJson, console, local_path, open_metadata_store, path_option, print_json
from s2v_tasks.cli.watch import Watch, watch_job
from s2v_tasks.errors import PermanentError
from s2v_tasks.schemas.job import RestartableStatus, check_job_id
from s2v_tasks.schemas.request import Request
from s2v_tasks.schemas.request_parsing import parse_request
from s2v_tasks.schemas.rerun import job_id_of_request
from s2v_tasks.schemas.starts import start_once
from s2v_tasks.settings import load_settings

if TYPE_CHECKING:
    from s2v_tasks.cli.airflow_api import AirflowApi
    from s2v_tasks.schemas.plan import Plan
    from s2v_tasks.storage.s3 import ObjectStore


def _check_job_id(job_id: str | None) -> str | None:
    return None if job_id is None else check_job_id(job_id)


Interface = Literal["api", "drop"]
Unpause = Annotated[bool, typer.Option("--unpause", help="Unpause the DAG; Airflow pauses new DAGs.")]
Via = Annotated[Interface, typer.Option(help="api: Airflow's REST API; drop: the drop folder in S3, without Airflow.")]
JobIdOption = Annotated[
    str | None, typer.Option(callback=_check_job_id, help="Name of the job. Default: derived from the request.")
]


@app.command(rich_help_panel=PEOPLE)
@request_options(*PLANNING)
def plan(
    audio: Annotated[Path, path_option("Speech file.")],
    image: Annotated[Path, path_option("Reference picture.")],
    fields: dict[str, Any],
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
) -> None:
    """Show clips, frames, size and cost of a video before any GPU time is used."""
    from s2v_tasks.planning.table import plan_table
    from s2v_tasks.steps.plan_clips import plan_files

    def show(result: "Plan") -> None:
        if as_json:
            typer.echo(result.model_dump_json(indent=2))
        else:
            console.print(plan_table(result, console.width))

    plan_files(image, audio, fields, show)


@app.command(rich_help_panel=PEOPLE)
@request_options("prompt", *PLANNING, *BOOKKEEPING)
def submit(
    image: Annotated[str, typer.Option(help="Reference picture: a file, or an S3 URI.")],
    audio: Annotated[str, typer.Option(help="Speech: a file, or an S3 URI.")],
    fields: dict[str, Any],
    pose_video: Annotated[str | None, typer.Option(help="Pose video: a file, or an S3 URI.")] = None,
    job_id: JobIdOption = None,
    via: Via = "api",
    watch: Watch = False,
    unpause: Unpause = False,
    as_json: AsJson = False,
) -> None:
    """Submit a job: upload the files, then start a run in Airflow. A failed or cancelled job continues.

    The same files and fields make the same job: nothing starts if it runs or has succeeded. Omitted fields have the
    defaults of the UI form, then those of the preset.
    """
    from s2v_tasks.storage.inputs import upload_input
    from s2v_tasks.storage.s3 import ObjectStore

    store = ObjectStore.from_settings(load_settings())
    sources = {"image_uri": image, "audio_uri": audio, "pose_video_uri": pose_video}
    request, files = _request(store, {name: given for name, given in sources.items() if given is not None}, fields)
    for path in files:
        upload_input(store, path)
    options = SubmitOptions(via, watch=watch, unpause=unpause, as_json=as_json)
    raise typer.Exit(submit_request(job_id or job_id_of_request(Path(audio).stem, request), request, options))


@dataclass(frozen=True)
class SubmitOptions:
    """Options of a submission; `unpause`: unpause the DAG if it is paused."""

    via: Interface
    watch: bool
    unpause: bool
    as_json: bool


def submit_request(job_id: str, request: Request, options: SubmitOptions) -> int:
    """Submit a job and print its state; return 0, or the exit code of the job if it is watched."""
    from s2v_tasks.cli.airflow_api import AirflowApi
    from s2v_tasks.cli.awaited_runs import find_run

    ended_before = known = None
    if load_settings().database_url is not None:
        with open_metadata_store() as metadata:
            metadata.jobs.check_request(job_id, request.model_dump(exclude_defaults=True), given_only=True)
            job = metadata.jobs.get(job_id)
        ended_before = job.finished_at if job else None
        known = job.status if job else None
    if options.via == "api":
        outcome = start(AirflowApi.from_settings(load_settings()), job_id, request, unpause=options.unpause)
    else:
        outcome = drop(job_id, request, known)
    report(outcome, as_json=options.as_json)
    if not options.watch:
        return 0
    ended_before = ended_before if outcome["started"] else None
    find = partial(find_run, job_id, outcome.get("run_id"))
    return watch_job(job_id, as_json=options.as_json, ended_before=ended_before, may_come=True, find_run=find)


def drop(job_id: str, request: Request, known: str | None = None) -> dict[str, Any]:
    """Write the request to the drop folder as one object, so that no sweep sees a part of it.

    `known`: the status of the job if it exists; nothing is written then, because a drop makes only new jobs.
    PermanentError if it has failed or was cancelled.
    """
    from s2v_tasks.storage.layout import drop_folder_uri
    from s2v_tasks.storage.s3 import ObjectStore

    if known in list(RestartableStatus):
        raise PermanentError(
            f"Job {job_id} is {known}: a drop makes only new jobs. Start it with `s2v retry {job_id}`."
        )
    if known is not None:
        return {"job_id": job_id, "dropped_as": None, "started": False, "status": known}
    settings = load_settings()
    uri = f"{drop_folder_uri(settings)}/incoming/{job_id}/request.json"
    content = request.model_dump(exclude_defaults=True) | {"job_id": job_id}
    data = json.dumps(content, indent=2, sort_keys=True).encode()
    ObjectStore.from_settings(settings).put_bytes(uri, data, "application/json")
    return {"job_id": job_id, "dropped_as": uri, "started": False}


def start(api: "AirflowApi", job_id: str, request: Request, *, unpause: bool = False) -> dict[str, Any]:
    """Start a run of a job as `start_once` does; return its state, and True if the DAG is paused."""
    conf = request.model_dump(exclude_defaults=True) | {"job_id": job_id}

    def find(run_id: str) -> tuple[str, dict[str, Any]] | None:
        run = api.run(run_id)
        return None if run is None else (run["state"], run["conf"] or {})

    run_id, state = start_once(job_id, conf, find, lambda run_id: api.trigger(run_id, conf))
    if unpause:
        api.unpause()
    outcome = {"job_id": job_id, "run_id": run_id, "started": state is None, "run_state": state or "queued"}
    return outcome | {"dag_is_paused": api.is_paused()}


def report(outcome: dict[str, Any], *, as_json: bool) -> None:
    """Print the outcome of a submission."""
    if as_json:
        print_json(outcome, indent=None)
        return
    if "status" in outcome:
        state = f"existed already, it is {outcome['status']}"
    elif "dropped_as" in outcome:
        state = f"waits as {outcome['dropped_as']} for the next sweep of the drop folder"
    else:
        state = "queued in Airflow" if outcome["started"] else f"existed already, its run is {outcome['run_state']}"
    job_id = outcome["job_id"]
    console.print(f"[bold]{job_id}[/bold] {escape(state)}; `s2v job {job_id} --watch` follows it")
    if outcome.get("dag_is_paused") and outcome["run_state"] == "queued":
        from s2v_tasks.cli.airflow_api import HOW_TO_UNPAUSE

        console.print(f"It waits: {HOW_TO_UNPAUSE}.", style="yellow", markup=False)


def _request(store: "ObjectStore", sources: dict[str, str], fields: dict[str, Any]) -> tuple[Request, list[Path]]:
    """Return the checked request, and the local files that must be uploaded for it."""
    from s2v_tasks.storage.inputs import input_uri

    expected = "a path on this machine, or an S3 URI such as s3://bucket/file"
    files = {name: local_path(given, expected) for name, given in sources.items() if not given.startswith("s3://")}
    uris = {name: input_uri(store, path) for name, path in files.items()}
    return parse_request(sources | uris | fields), [*files.values()]
