"""The command `s2v`: one command per step of the pipeline, and the commands for people."""

import importlib
import io
import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from typer.core import TyperGroup

from s2v_tasks import __version__, log
from s2v_tasks.cli.terminal import PEOPLE
from s2v_tasks.errors import PermanentError, S2VError, check_utf8, leave_error, of_local_file
from s2v_tasks.parent_death import end_with_parent


class _Commands(TyperGroup):
    """The commands. Errors name the commands that have an option, such as `watch`, and repeat a wrong number."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:
            if isinstance(error.__cause__, ValidationError):
                error.message = _wrong_value(error, error.__cause__)
            raise

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args[0] not in self.commands:
            commands = {"s2v": self} | {f"s2v {name}": command for name, command in self.commands.items()}
            option = f"--{args[0]}"
            users = [name for name, command in commands.items() if any(option in p.opts for p in command.params)]
            if users:
                names = ", ".join(f"`{name} {option}`" for name in users)
                ctx.fail(f"No such command {args[0]!r}. It is an option: {names}.")
        return super().resolve_command(ctx, args)


def _wrong_value(error: typer.BadParameter, cause: ValidationError) -> str:
    """Return the message for a wrong value of an option, with the value and the range of a number."""
    option: Any = error.param
    info, kind = option.type_descriptor.parameter_info, option.type_descriptor.annotation
    if kind not in (int, float):
        return error.message.removeprefix("Value error, ")  # it has the value
    number = "a whole number" if kind is int else "a number"
    if info.min is not None:
        number += f" of at least {info.min}" if info.max is None else f" from {info.min} to {info.max}"
    return f"{cause.errors()[0]['input']!r} is not {number}."


app = typer.Typer(
    name="s2v",
    cls=_Commands,
    help="Talking videos of any length with Wan2.2-S2V-14B. Exit codes: 0 ok, 2 usage, 65 bad input, 75 try again, "
    "78 configuration; of a job that is watched also 130 cancelled.",
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
    from s2v_tasks.settings import load_settings

    settings = load_settings()
    log.configure(json_lines=settings.log_json, level=settings.log_level)


@app.command("help", rich_help_panel=PEOPLE)
def show_help(
    command: Annotated[list[str] | None, typer.Argument(help="A command, for example `snapshot verify`.")] = None,
) -> None:
    """Show the options of a command, as its option --help does. Omitted: list all commands."""
    app([*(command or ()), "--help"])


COMMAND_MODULES = (
    "approval",
    "bench",
    "bench_cache",
    "bench_jobs",
    "bench_step",
    "bench_viewers",
    "housekeeping",
    "ingestion",
    "installation",
    "job_control",
    "jobs",
    "measure",
    "stack",
    "steps",
    "submit",
)


def load_commands() -> None:
    """Import the modules whose commands register themselves."""
    for name in COMMAND_MODULES:
        importlib.import_module(f"s2v_tasks.cli.{name}")


def _load_interruptible() -> None:
    """Import the commands. Ctrl-C ends the process at once, as imports would show it as a traceback."""
    handler = signal.getsignal(signal.SIGINT)
    if handler is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    load_commands()
    signal.signal(signal.SIGINT, handler)


def main() -> None:
    """Run the command line; an error is printed as one sentence on stderr and sets the exit code."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        # A rank has its own session, so it would survive a killed torchrun.
        end_with_parent(signal.SIGKILL)
    _open_closed_streams()
    _load_interruptible()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal or file of another encoding than UTF-8
    try:
        check_utf8(sys.argv[1:])
        app()
    except Exception as error:
        ours = error if isinstance(error, S2VError) else None
        ours = of_local_file(error, sys.argv[1:]) or ours
        if ours is None:
            _leave(1, f"{type(error).__name__}: {error}")
            raise
        # A temporary error need not be stored: another try follows.
        _leave(ours.exit_code, str(ours), is_recorded=ours.is_recorded or not isinstance(ours, PermanentError))
        log.show_error(ours)
        sys.exit(ours.exit_code)


def _open_closed_streams() -> None:
    """Open the null device for each standard stream that is closed, so that no other file gets its number."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115 - it stays open until the process ends


def _leave(exit_code: int, message: str, *, is_recorded: bool = True) -> None:
    """Report the error to the parent. If the disk is full, only the exit code reports it."""
    try:
        leave_error(exit_code, message, is_recorded=is_recorded)
    except OSError as error:
        typer.echo(f"The error file could not be written: {error}", err=True)
