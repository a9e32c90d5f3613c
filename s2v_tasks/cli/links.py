"""`s2v link`: a file of a job as a URL that a browser opens."""

import json
from typing import Annotated

import typer

from s2v_tasks.cli import app
from s2v_tasks.cli.terminal import PEOPLE
from s2v_tasks.errors import PermanentError

LINK_SECONDS = 3600


@app.command(rich_help_panel=PEOPLE)
def link(
    job_id: Annotated[str, typer.Argument(help="The job.")],
    file: Annotated[str, typer.Argument(help="video, report or contact-sheet.")] = "video",
) -> None:
    """Print a URL of a file of a job. For an hour whoever has the URL can read that file."""
    from s2v_tasks.settings import load_settings
    from s2v_tasks.storage.layout import JobLayout, output_video_uri
    from s2v_tasks.storage.s3 import ObjectStore

    settings, layout = load_settings(), JobLayout(job_id)
    addresses = {
        "video": output_video_uri(settings, job_id),
        "report": layout.report,
        "contact-sheet": layout.contact_sheet,
    }
    if file not in addresses:
        raise PermanentError(f"{file!r} is not a file of a job: expected one of {', '.join(addresses)}.")
    if not ObjectStore.from_settings(settings).exists(addresses[file]):
        raise PermanentError(f"Job {job_id} has no {file} yet: `s2v job {job_id}` shows how far it is.")
    url = ObjectStore.seen_by_browsers(settings).link(addresses[file], seconds=LINK_SECONDS)
    typer.echo(json.dumps({"job_id": job_id, "file": file, "url": url}))
