"""The embedded stack: PostgreSQL, S3 and Airflow on one machine, on loopback, without configuration."""

from pathlib import Path
from typing import Annotated, Any

import typer

from s2v_tasks.cli import app
from s2v_tasks.cli.request_options import BOOKKEEPING, PLANNING, request_options
from s2v_tasks.cli.terminal import path_option
from s2v_tasks.settings import load_settings

STACK = "Embedded stack"


@app.command(rich_help_panel=STACK)
@request_options("prompt", *PLANNING, *BOOKKEEPING, "parent_job_id", "from_clip")
def demo(
    fields: dict[str, Any],
    image: Annotated[Path | None, path_option("Reference picture. Default: the sample.")] = None,
    audio: Annotated[Path | None, path_option("Speech file. Default: the sample.")] = None,
    pose_video: Annotated[Path | None, path_option("Pose video.")] = None,
    job_id: Annotated[str | None, typer.Option(help="Name of the job. An existing job is continued or reused.")] = None,
    out: Annotated[Path, path_option("Folder for the finished video.")] = Path("out"),
) -> None:
    """Make a talking video with the DAG on this machine, from S3 to S3, with a small model.

    The result is printed on stdout, and the log of the steps on stderr.
    """
    from s2v_tasks.embedded.demo import DemoInputs, run_demo

    inputs = DemoInputs(image=image, audio=audio, pose_video=pose_video)
    raise typer.Exit(run_demo(load_settings().home, inputs, fields, out_dir=out, job_id=job_id))


@app.command(rich_help_panel=STACK)
def up() -> None:
    """Start PostgreSQL, S3 and Airflow with its UI."""
    from s2v_tasks.embedded.stack import up as start

    start(load_settings().home)


@app.command(rich_help_panel=STACK)
def down() -> None:
    """Stop PostgreSQL, S3 and Airflow; their data is kept."""
    from s2v_tasks.embedded.stack import down as stop

    stop(load_settings().home)


@app.command(rich_help_panel=STACK)
def status() -> None:
    """Show the services that run and their addresses."""
    from s2v_tasks.embedded.stack import status as show

    show(load_settings().home)
