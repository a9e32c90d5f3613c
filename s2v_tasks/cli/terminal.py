"""Console, tables, metadata store, JSON output and file arguments of the commands for people."""

import json
import os
import re
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.table import Table
from rich.text import Text

from s2v_tasks.errors import PermanentError

if TYPE_CHECKING:
    from s2v_tasks.metadata.store import MetadataStore

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
JobId = Annotated[str, typer.Argument(help="The job.")]
PEOPLE, OPERATORS, INGESTION = "For people", "For operators", "Drop folder and batches"
if os.environ.get("COLUMNS") == "0":
    del os.environ["COLUMNS"]  # a terminal of unknown width
# In a pipe or a file nothing is wrapped, so that each line is a row or a message.
console = Console(width=None if os.isatty(1) else 100_000)
_NARROWEST_LAST_COLUMN = 24
_PARAGRAPH: dict[str, Any] = {"subsequent_indent": "  ", "break_on_hyphens": False, "break_long_words": False}


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


def print_table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows with a heading. Only the last column is wrapped, so that names can be copied.

    In a pipe or a file each row is one line. In a terminal that is too narrow each row is a paragraph.
    """
    widths = [max(map(cell_len, column)) for column in zip(names, *rows, strict=True)]
    needed = sum(widths[:-1]) + min(widths[-1], _NARROWEST_LAST_COLUMN) + 3 * len(widths) + 1
    if not rows or not console.is_terminal:
        for row in (names, *rows):
            cells = (set_cell_size(" ".join(cell.split()), width) for cell, width in zip(row, widths, strict=True))
            _print_plain("  ".join(cells).rstrip())
    elif needed <= console.width:
        table = Table()
        for name in names:
            table.add_column(name, no_wrap=name != names[-1], overflow="fold")
        for row in rows:
            table.add_row(*map(Text, row))
        console.print(table)
    else:
        for row in rows:
            text = "  ".join(f"{name}: {cell}" for name, cell in zip(names, row, strict=True) if cell)
            _print_plain(textwrap.fill(text, console.width, **_PARAGRAPH))


def _print_plain(text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def print_json(value: Any, *, indent: int | None = 2) -> None:
    """Print a value as JSON, with times as text."""
    typer.echo(json.dumps(value, indent=indent, default=str))
