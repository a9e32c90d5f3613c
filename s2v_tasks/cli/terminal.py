"""What the commands for people share: the console, the ledger, and how records become JSON."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console

if TYPE_CHECKING:
    from s2v_tasks.metadata.repository import Ledger

PEOPLE, OPERATORS = "For people", "For operators"
# Into a pipe or a file rows keep their width, so that a line is a row.
console = Console(width=None if sys.stdout.isatty() else 180)


@contextmanager
def open_ledger() -> Iterator["Ledger"]:
    """The ledger of this installation; its connections are closed at the end."""
    from s2v_tasks.metadata.repository import Ledger
    from s2v_tasks.metadata.session import engine_from_settings
    from s2v_tasks.settings import load_settings

    engine = engine_from_settings(load_settings())
    try:
        yield Ledger(engine)
    finally:
        engine.dispose()


def plain(record: Any) -> dict[str, Any]:
    """A record as plain values."""
    return asdict(record)


def print_json(value: Any, *, indent: int | None = 2) -> None:
    """Print for machines; times as ISO-like text."""
    typer.echo(json.dumps(value, indent=indent, default=str))
