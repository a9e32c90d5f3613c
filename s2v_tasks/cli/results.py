"""`s2v fetch` and `s2v link`: the result of a job as local files or as URLs."""

import json
from pathlib import Path
from typing import Annotated

import typer

from s2v_tasks.cli import app
from s2v_tasks.cli.terminal import PEOPLE, console, print_json
from s2v_tasks.settings import load_settings


@app.command(rich_help_panel=PEOPLE)
def fetch(
    job_id: Annotated[str, typer.Argument(help="The job.")],
    to: Annotated[Path, typer.Option(help="Folder for the files.")] = Path("out"),
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """Download video, report and contact sheet of a job that succeeded; their checksums are verified."""
    from s2v_tasks.storage.artifacts import ArtifactStore
    from s2v_tasks.storage.result_files import fetch_result
    from s2v_tasks.storage.s3 import ObjectStore

    fetched = fetch_result(ArtifactStore(ObjectStore.from_settings(load_settings())), job_id, to)
    files = {name: str(getattr(fetched, name)) for name in ("video", "report", "contact_sheet", "description")}
    if as_json:
        print_json({"job_id": job_id, "sha256": fetched.facts["sha256"]} | files)
    else:
        for name, path in files.items():
            console.print(f"{name.replace('_', ' ')}: {path}", markup=False)


@app.command(rich_help_panel=PEOPLE)
def link(
    job_id: Annotated[str, typer.Argument(help="The job.")],
    file: Annotated[str, typer.Argument(help="video, report or contact-sheet.")] = "video",
) -> None:
    """Print a presigned URL of a file of a job. It is valid for one hour and needs no login."""
    from s2v_tasks.settings import load_settings
    from s2v_tasks.storage.result_files import JobLinks

    url = JobLinks(load_settings()).url(job_id, file)
    typer.echo(json.dumps({"job_id": job_id, "file": file, "url": url}))
