"""`s2v link`: a file of a job as a URL that a browser opens."""

import json
from typing import Annotated

import typer

from s2v_tasks.cli import app
from s2v_tasks.cli.terminal import PEOPLE


@app.command(rich_help_panel=PEOPLE)
def link(
    job_id: Annotated[str, typer.Argument(help="The job.")],
    file: Annotated[str, typer.Argument(help="video, report or contact-sheet.")] = "video",
) -> None:
    """Print a URL of a file of a job. For an hour whoever has the URL can read that file."""
    from s2v_tasks.settings import load_settings
    from s2v_tasks.storage.result_files import JobLinks

    url = JobLinks(load_settings()).url(job_id, file)
    typer.echo(json.dumps({"job_id": job_id, "file": file, "url": url}))
