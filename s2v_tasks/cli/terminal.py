"""Console, metadata store and JSON output of the commands for people."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

if TYPE_CHECKING:
    from s2v_tasks.metadata.store import MetadataStore

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
JobId = Annotated[str, typer.Argument(help="The job.")]
PEOPLE, OPERATORS, INGESTION = "For people", "For operators", "Drop folder and batches"
# In a pipe or a file rows are not wrapped, so that each line is a row.
console = Console(width=None if sys.stdout.isatty() else 180)


@contextmanager
def open_metadata_store() -> Iterator["MetadataStore"]:
    """Yield the metadata store of this installation and close its connections at the end."""
    from s2v_tasks.metadata.store import open_metadata
    from s2v_tasks.settings import load_settings

    with open_metadata(load_settings()) as metadata:
        yield metadata


def print_json(value: Any, *, indent: int | None = 2) -> None:
    """Print a value as JSON, with times as text."""
    typer.echo(json.dumps(value, indent=indent, default=str))
