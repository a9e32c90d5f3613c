"""Console, metadata store, JSON output and file arguments of the commands for people."""

import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from s2v_tasks.errors import PermanentError

if TYPE_CHECKING:
    from s2v_tasks.metadata.store import MetadataStore

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
JobId = Annotated[str, typer.Argument(help="The job.")]
PEOPLE, OPERATORS, INGESTION = "For people", "For operators", "Drop folder and batches"
# In a pipe or a file rows are not wrapped, so that each line is a row.
console = Console(width=None if sys.stdout.isatty() else 180)


def local_path(given: str | Path, expected: str = "a path on this machine") -> Path:
    """Return a path that a user has typed; PermanentError for a URL, which `Path` would change, and for a blank text.

    `expected`: what the argument may be.
    """
    text = str(given)
    if re.match("[A-Za-z][A-Za-z0-9+.-]*://", text):
        raise PermanentError(f"{text!r} is a URL: expected {expected}; download the file first.")
    if not text.strip():
        raise PermanentError(f"{text!r} is blank: expected {expected}.")
    return Path(given)


def path_option(meaning: str) -> Any:
    """Return an option whose value is a path on this machine."""
    return typer.Option(help=meaning, parser=local_path, metavar="PATH")


def path_argument(meaning: str) -> Any:
    """Return an argument whose value is a path on this machine."""
    return typer.Argument(help=meaning, parser=local_path)


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
