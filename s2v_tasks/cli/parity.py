"""`s2v parity`: the engine compared with recorded tensors."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from s2v_tasks.cli import app
from s2v_tasks.cli.terminal import PEOPLE, console


@app.command(rich_help_panel=PEOPLE)
def parity(
    folder: Annotated[Path, typer.Argument(help="Folder with golden files.")],
    nproc: Annotated[int, typer.Option(min=1, help="Processes that share each forward and loop, on the CPU.")] = 1,
    layout: Annotated[
        str, typer.Option(help="How they share the work: auto, or parts like cfg2,ulysses2,fsdp.")
    ] = "auto",
    device: Annotated[str, typer.Option(help="cpu, or cuda on one process.")] = "cpu",
    dtype: Annotated[
        str, typer.Option(help="float32, or bfloat16: forwards of the transformer alone, with their own tolerances.")
    ] = "float32",
) -> None:
    """Compare this engine with recorded tensors; exit code 1 when a case is outside its tolerance."""
    from s2v_tasks.engine.distributed.mesh import Layout
    from s2v_tasks.planning.resolution import output_size
    from s2v_tasks.verification.parity.runner import parse_target, run, run_on_ranks

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
    typer.echo(f"{len(results) - len(failed)} of {len(results)} cases within their tolerances")
    if failed:
        raise typer.Exit(1)
