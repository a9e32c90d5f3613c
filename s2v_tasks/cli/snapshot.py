"""`s2v snapshot`: model weights on disk."""

from pathlib import Path
from typing import Annotated

import typer

from s2v_tasks.cli import app
from s2v_tasks.cli.terminal import OPERATORS

snapshot = typer.Typer(help="Model weights on disk.", no_args_is_help=True)
app.add_typer(snapshot, name="snapshot", rich_help_panel=OPERATORS)


@snapshot.command("init-tiny")
def snapshot_init_tiny(
    folder: Annotated[Path, typer.Argument(help="Folder to create.")],
    seed: Annotated[int, typer.Option(min=0, help="Equal seeds give equal bytes.")] = 0,
) -> None:
    """Write a tiny checkpoint with random weights in the official layout, for demos and tests."""
    from s2v_tasks.verification.tiny_snapshot import write_tiny_snapshot

    write_tiny_snapshot(folder, seed)
    typer.echo(str(folder))


@snapshot.command("verify")
def snapshot_verify(
    folder: Annotated[Path, typer.Argument(help="Snapshot with a SHA256SUMS beside its files.")],
) -> None:
    """Compare all weight files with the sha256 digests of SHA256SUMS, as `sha256sum` writes them."""
    from s2v_tasks.engine.loading.identity import verify_checksums

    typer.echo(f"{verify_checksums(folder)} files are as listed")
