"""`s2v plan`: clips, frames, size and cost of a video before a GPU is used."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from s2v_tasks.cli import app
from s2v_tasks.cli.options import PLANNING, request_options
from s2v_tasks.cli.terminal import PEOPLE, console

if TYPE_CHECKING:
    from s2v_tasks.schemas.plan import Plan


@app.command(rich_help_panel=PEOPLE)
@request_options(*PLANNING)
def plan(
    audio: Annotated[Path, typer.Option(help="Speech file.")],
    image: Annotated[Path, typer.Option(help="Reference picture.")],
    fields: dict[str, Any],
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
) -> None:
    """Show clips, frames, size and cost of a video before anything is spent."""
    from s2v_tasks.planning.table import plan_table
    from s2v_tasks.steps.plan_clips import plan_files

    def show(result: "Plan") -> None:
        if as_json:
            typer.echo(result.model_dump_json(indent=2))
        else:
            console.print(plan_table(result))

    plan_files(image, audio, fields, show)
