"""`s2v costs`: the cost of encoding and rendering, and the wasted part of it."""

from datetime import UTC, datetime
from typing import Annotated, Literal

import typer
from rich.markup import escape
from rich.table import Table

from s2v_tasks.cli import app
from s2v_tasks.cli.terminal import PEOPLE, AsJson, console, open_metadata_store, plain, print_json


@app.command(rich_help_panel=PEOPLE)
def costs(
    by: Annotated[Literal["all", "label", "preset", "day", "job"], typer.Option(help="Group by.")] = "all",
    since: Annotated[
        datetime | None,
        typer.Option(
            formats=["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"], help="Only attempts that started at this UTC time or later."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show GPU-seconds and cost, at the price that each job was planned with.

    Wasted: attempts that failed, were cancelled or lost. A job counts once for each of its labels.
    """
    with open_metadata_store() as metadata:
        lines = metadata.costs.spending(by, since=since.replace(tzinfo=UTC) if since else None)
    if as_json:
        print_json([plain(line) for line in lines])
        return
    table = Table(by, "jobs", "GPU-seconds used", "for conditions", "wasted", "cost", "wasted cost", "currency")
    for line in lines:
        table.add_row(
            escape(line.name),
            str(line.jobs),
            f"{line.used_gpu_seconds:.1f}",
            f"{line.conditions_gpu_seconds:.1f}",
            f"{line.wasted_gpu_seconds:.1f}",
            "" if line.cost is None else f"{line.cost:.4f}",
            f"{line.wasted_cost or 0:.4f}",
            line.currency or "",
        )
    console.print(table)
