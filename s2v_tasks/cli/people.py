"""Commands that ask beforehand: what will it cost, does this engine compute the right thing."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

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


@app.command(rich_help_panel=PEOPLE)
def parity(
    folder: Annotated[Path, typer.Argument(help="Folder with golden files.")],
    nproc: Annotated[int, typer.Option(min=1, help="Processes that share each forward and loop, on the CPU.")] = 1,
    layout: Annotated[
        str, typer.Option(help="How they share the work: auto, or parts like cfg2,ulysses2,fsdp.")
    ] = "auto",
    device: Annotated[str, typer.Option(help="cpu, or cuda on one process.")] = "cpu",
    dtype: Annotated[
        str, typer.Option(help="float32, or bfloat16: the forwards of the transformer alone, with gates of their own.")
    ] = "float32",
) -> None:
    """Compare this engine with recorded tensors; exit code 1 when one case is outside its gate."""
    from s2v_tasks.engine.distributed.mesh import Layout
    from s2v_tasks.planning.resolution import output_size
    from s2v_tasks.verification.parity.launch import run_on_ranks
    from s2v_tasks.verification.parity.runner import parse_target, run

    shared = None if layout == "auto" else Layout.parse(layout)
    target = parse_target(device, dtype, num_ranks=nproc)
    if nproc == 1:
        results = run(folder, output_size=output_size, layout=shared, target=target)
    else:
        results = run_on_ranks(folder, num_ranks=nproc, output_size=output_size, layout=shared)
    table = Table("case", "max abs diff", "gate", "ok", "note")
    for result in results:
        table.add_row(
            escape(result.name),
            f"{result.max_abs_diff:.2e}",
            f"{result.gate:.0e}",
            "ok" if result.ok else "FAIL",
            escape(result.note),
        )
    console.print(table)
    failed = [result.name for result in results if not result.ok]
    typer.echo(f"{len(results) - len(failed)} of {len(results)} cases inside their gates")
    if failed:
        raise typer.Exit(1)
