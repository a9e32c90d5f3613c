"""`s2v db`, `s2v snapshot`, `s2v check`, `s2v parity`: prepare an installation, and check the requirements of jobs."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from s2v_tasks.cli import app
from s2v_tasks.cli.terminal import OPERATORS, PEOPLE, console, path_argument
from s2v_tasks.settings import load_settings

db = typer.Typer(help="The project's own database.", no_args_is_help=True)


app.add_typer(db, name="db", rich_help_panel=OPERATORS)
snapshot = typer.Typer(help="Model weights on disk.", no_args_is_help=True)
app.add_typer(snapshot, name="snapshot", rich_help_panel=OPERATORS)


@db.command("upgrade")
def db_upgrade(
    revision: Annotated[str, typer.Argument(help="Revision to stop at, for example 0003.")] = "head",
) -> None:
    """Upgrade the database to the newest schema."""
    from s2v_tasks.metadata.migrate import upgrade
    from s2v_tasks.metadata.session import configured_url

    typer.echo(f"database is at {upgrade(configured_url(load_settings()), revision)}")


@app.command(rich_help_panel=OPERATORS)
def check() -> None:
    """Check the requirements of a job: database, buckets, tools, configuration, weights, GPUs.

    It writes a small object into each S3 folder and deletes it. Exit code 78: a requirement is missing.
    """
    from s2v_tasks.metadata.session import configured_url
    from s2v_tasks.runtime.requirements import check_installation
    from s2v_tasks.storage.s3 import ObjectStore

    settings = load_settings()
    check_installation(settings, ObjectStore.from_settings(settings), configured_url(settings))
    typer.echo("all requirements are met")


@snapshot.command("init-tiny")
def snapshot_init_tiny(
    folder: Annotated[Path, path_argument("Folder to create.")],
    seed: Annotated[int, typer.Option(min=0, help="Equal seeds make equal files.")] = 0,
) -> None:
    """Write a tiny checkpoint with random weights in the official layout, for demos and tests."""
    from s2v_tasks.verification.tiny_snapshot import write_tiny_snapshot

    write_tiny_snapshot(folder, seed)
    typer.echo(str(folder))


@snapshot.command("inspect")
def snapshot_inspect(
    path: Annotated[Path, path_argument("File or folder of weights.")],
) -> None:
    """Show the kind and layout of weights, the files that are missing, and the command that completes them."""
    from s2v_tasks.engine.loading.inspection import inspect

    for line in inspect(path):
        typer.echo(line)


@snapshot.command("init-talker")
def snapshot_init_talker(folder: Annotated[Path, path_argument("Folder to create.")]) -> None:
    """Write the talking snapshot: a small trained checkpoint in the official layout, for demos on a CPU."""
    from s2v_tasks.verification.talker_snapshot import write_talker_snapshot

    write_talker_snapshot(folder)
    typer.echo(str(folder))


@snapshot.command("verify")
def snapshot_verify(
    folder: Annotated[Path, path_argument("Folder of the snapshot, which contains SHA256SUMS.")],
) -> None:
    """Compare all weight files with the digests in SHA256SUMS (format of `sha256sum`)."""
    from s2v_tasks.engine.loading.identity import verify_checksums

    typer.echo(f"{verify_checksums(folder)} files are as listed")


@app.command(rich_help_panel=PEOPLE)
def parity(
    folder: Annotated[Path, path_argument("Folder with golden files.")],
    nproc: Annotated[
        int, typer.Option(min=1, help="Number of processes that compute each case together, on the CPU.")
    ] = 1,
    layout: Annotated[
        str, typer.Option(help="Layout of several ranks: auto, or parts like cfg2,ulysses2,fsdp.")
    ] = "auto",
    device: Annotated[str, typer.Option(help="Device: cpu, or cuda with one process.")] = "cpu",
    dtype: Annotated[
        str, typer.Option(help="float32, or bfloat16: only forwards of the transformer, with separate tolerances.")
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
