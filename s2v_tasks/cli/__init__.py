"""The command `s2v`: one command per step of the road, and the commands for people."""

import json
import os
import sys
from pathlib import Path

import typer

from s2v_tasks import __version__
from s2v_tasks.errors import S2VError

app = typer.Typer(
    name="s2v",
    help="Talking videos of any length with Wan2.2-S2V-14B. Exit codes: 0 ok, 2 usage, 65 bad input, 75 try again, "
    "78 configuration.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _process(
    version: bool = typer.Option(False, "--version", callback=_print_version, is_eager=True, help="Print the version."),
) -> None:
    from s2v_tasks import log
    from s2v_tasks.settings import load_settings

    settings = load_settings()
    log.configure(json_lines=settings.log_json, level=settings.log_level)


def main() -> None:
    """Run the command line; errors become one sentence on stderr and their exit code."""
    from s2v_tasks.cli import people, stack, steps  # noqa: F401  (their commands register themselves)

    try:
        app()
    except S2VError as error:
        leave_error(error)
        typer.echo(f"{type(error).__name__}: {error}", err=True)
        sys.exit(error.exit_code)


def leave_error(error: S2VError) -> None:
    """Write exit code and message where the parent asked for them: torchrun hides both from its own caller."""
    path = os.environ.get("STEP_ERROR_FILE")
    if path:
        Path(path).write_text(json.dumps({"exit_code": error.exit_code, "message": str(error)}), encoding="utf-8")
