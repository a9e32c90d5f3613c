"""`s2v submit`: hand in a job, from files here or objects in S3. The same request again is the same job."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from s2v_tasks.cli import app
from s2v_tasks.cli.options import BOOKKEEPING, PLANNING, request_options
from s2v_tasks.cli.terminal import PEOPLE, console, open_ledger, print_json
from s2v_tasks.cli.watch import Watch, end_on_record, watch_job
from s2v_tasks.errors import PermanentError
from s2v_tasks.schemas.manifest import fingerprint
from s2v_tasks.schemas.request import Request, parse_request
from s2v_tasks.settings import load_settings

if TYPE_CHECKING:
    from s2v_tasks.cli.airflow_api import AirflowApi
    from s2v_tasks.storage.s3 import ObjectStore

AsJson = Annotated[bool, typer.Option("--json", help="For machines.")]
JobIdOption = Annotated[str | None, typer.Option(help="Name of the job; left out: made from the request.")]


@app.command(rich_help_panel=PEOPLE)
@request_options("prompt", *PLANNING, *BOOKKEEPING)
def submit(
    image: Annotated[str, typer.Option(help="Reference picture: a file, or an S3 URI.")],
    audio: Annotated[str, typer.Option(help="Speech: a file, or an S3 URI.")],
    fields: dict[str, Any],
    pose_video: Annotated[str | None, typer.Option(help="Pose video: a file, or an S3 URI.")] = None,
    job_id: JobIdOption = None,
    watch: Watch = False,
    as_json: AsJson = False,
) -> None:
    """Hand in a job. Files are uploaded, then Airflow is told; a job that failed or was cancelled goes on.

    The same files and fields again are the same job: nothing is started while it runs or when it has succeeded.
    """
    from s2v_tasks.cli.airflow_api import AirflowApi
    from s2v_tasks.storage.s3 import ObjectStore

    settings = load_settings()
    api, store = AirflowApi.from_settings(settings), ObjectStore.from_settings(settings)
    sources = {"image_uri": image, "audio_uri": audio, "pose_video_uri": pose_video}
    request, files = _request(store, {name: given for name, given in sources.items() if given}, fields)
    _upload(store, files)
    hand_in(api, job_id or _job_id(request, Path(audio).stem), request, watch=watch, as_json=as_json)


def hand_in(api: "AirflowApi", job_id: str, request: Request, *, watch: bool, as_json: bool) -> None:
    """Start the job, say so, and follow it if that is wanted: then the exit code is the job's."""
    if not watch:
        report_start(start(api, job_id, request), as_json=as_json)
        return
    with open_ledger() as ledger:
        ended_before = end_on_record(ledger, job_id)
    outcome = start(api, job_id, request)
    report_start(outcome, as_json=as_json)
    raise typer.Exit(
        watch_job(job_id, as_json=as_json, ended_before=ended_before if outcome["started"] else None, may_come=True)
    )


def start(api: "AirflowApi", job_id: str, request: Request) -> dict[str, Any]:
    """Start the run of a job unless it has one that runs or succeeded; what it is now.

    A job whose runs all failed gets another one, `<job id>--2` and so on: finished clips are reused.
    PermanentError when the job id belongs to another request.
    """
    conf = request.model_dump(exclude_defaults=True) | {"job_id": job_id}
    number, run_id = 1, job_id
    while True:
        run = api.run(run_id)
        if run is None:
            if api.trigger(run_id, conf):
                return {"job_id": job_id, "run_id": run_id, "started": True, "run_state": "queued"}
            continue  # another was faster
        _check_same(job_id, request, run["conf"] or {})
        if run["state"] != "failed":
            return {"job_id": job_id, "run_id": run_id, "started": False, "run_state": run["state"]}
        number += 1
        run_id = f"{job_id}--{number}"


def report_start(outcome: dict[str, Any], *, as_json: bool) -> None:
    """Say what became of a request."""
    if as_json:
        print_json(outcome, indent=None)
        return
    state = "started" if outcome["started"] else f"was there already, its run is {outcome['run_state']}"
    console.print(f"[bold]{outcome['job_id']}[/bold] {state}; `s2v job {outcome['job_id']} --watch` follows it")


def _request(store: "ObjectStore", sources: dict[str, str], fields: dict[str, Any]) -> tuple[Request, list[Path]]:
    """The request, checked before anything is sent, and the local files that it needs in S3."""
    from s2v_tasks.storage.uploads import input_uri

    files = [Path(given) for given in sources.values() if not given.startswith("s3://")]
    uris = {
        name: given if given.startswith("s3://") else input_uri(store, Path(given)) for name, given in sources.items()
    }
    return parse_request(uris | fields), files


def _upload(store: "ObjectStore", files: list[Path]) -> None:
    from s2v_tasks.storage.uploads import upload_input

    for path in files:
        upload_input(store, path)


def _job_id(request: Request, name: str) -> str:
    """A readable job id that is the same for the same request."""
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40].strip("-") or "job"
    return f"{slug}-{fingerprint(request.model_dump())[:10]}"


def _check_same(job_id: str, request: Request, conf: dict[str, Any]) -> None:
    there = parse_request({name: value for name, value in conf.items() if name != "job_id" and value is not None})
    ours, theirs = request.model_dump(), there.model_dump()
    differing = sorted(name for name in ours if ours[name] != theirs[name])
    if differing:
        raise PermanentError(
            f"Job {job_id!r} is there with other values of {', '.join(differing)}: choose another --job-id, or use "
            "`s2v rerun` to change what was made."
        )
