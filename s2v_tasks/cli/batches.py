"""Batches: check a manifest, start its jobs, show and summarise them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from s2v_tasks.cli import app
from s2v_tasks.cli.terminal import INGESTION, console, open_metadata_store, print_json

if TYPE_CHECKING:
    from s2v_tasks.ingestion.batches import Batches

ManifestUri = Annotated[str, typer.Argument(help="S3 URI of the manifest: .jsonl or .csv, one request per row.")]
BatchId = Annotated[str, typer.Argument(help="The batch, as `s2v start-batch` prints it.")]


@app.command(rich_help_panel=INGESTION)
def check_batch(
    manifest_uri: ManifestUri, as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False
) -> None:
    """Check every row of a manifest, its files too, and list all that is wrong; exit code 65 if anything is.

    A row is named by the line in which it begins, as an editor counts: from 1, the heading of a CSV included.
    """
    from dataclasses import asdict

    from rich.markup import escape
    from rich.table import Table

    with _batches() as batches:
        right, errors = batches.check(manifest_uri)
    if as_json:
        print_json({"rows": len(right) + len(errors), "errors": [asdict(error) for error in errors]})
    else:
        table = Table("line", "id", "error")
        for error in errors:
            table.add_row(str(error.line), escape(error.row_id or ""), escape(error.error))
        if errors:
            console.print(table)
        typer.echo(f"{len(right)} of {len(right) + len(errors)} rows are right")
    if errors:
        raise typer.Exit(65)


@app.command(rich_help_panel=INGESTION)
def start_batch(
    manifest_uri: ManifestUri,
    retry_failed: Annotated[bool, typer.Option(help="Also rows whose job failed or was cancelled.")] = False,
) -> None:
    """Queue the jobs of a manifest that are not there yet; nothing if one row is wrong."""
    with _batches() as batches:
        print_json(batches.start(manifest_uri, retry_failed=retry_failed), indent=None)


@app.command(rich_help_panel=INGESTION)
def batch_state(batch_id: BatchId) -> None:
    """Show how many jobs of a batch have which status, and whether all have ended."""
    with _batches() as batches:
        print_json(batches.state(batch_id), indent=None)


@app.command(rich_help_panel=INGESTION)
def summarise_batch(batch_id: BatchId) -> None:
    """Write what became of each row, and the numbers, beside the manifest."""
    with _batches() as batches:
        print_json(batches.summarise(batch_id), indent=None)


@contextmanager
def _batches() -> Iterator["Batches"]:
    from s2v_tasks.ingestion.batches import Batches
    from s2v_tasks.schemas.preset import load_presets
    from s2v_tasks.settings import config_dir, load_settings
    from s2v_tasks.storage.s3 import ObjectStore

    settings = load_settings()
    with open_metadata_store() as metadata:
        presets = load_presets(config_dir(settings))
        yield Batches(ObjectStore.from_settings(settings), metadata.batches, presets)
