"""Check the output of commands in pipes, in terminals of any width and encoding, and after Ctrl-C."""

import io
import os
import signal
import subprocess
import sys

import pytest
from rich.console import Console

from s2v_tasks.cli import terminal

NAMES = ("job", "status", "video or reason")
ROWS = [
    ("interview-with-anna-0123456789", "succeeded", "s3://bucket/output/interview-with-anna-0123456789.mp4"),
    ("talk-1", "failed", "plan_clips: [/b]\nthe speech has 1200 s: expected at most 600 s. " + "Cut the file. " * 9),
]


def printed(monkeypatch: pytest.MonkeyPatch, *, width: int, is_terminal: bool = True) -> str:
    """Return the text of a table on a console of this width."""
    console = Console(width=width, force_terminal=is_terminal, no_color=True, file=io.StringIO())
    monkeypatch.setattr(terminal, "console", console)
    terminal.print_table(NAMES, ROWS)
    text: str = console.file.getvalue()
    return text


def test_a_row_is_a_line_in_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a pipe each row is one line without frames, trailing spaces or escape codes, however long it is."""
    heading, first, second = printed(monkeypatch, width=100, is_terminal=False).splitlines()
    assert heading.split("  ")[0] == "job"
    assert first.split() == list(ROWS[0])
    assert second.split() == " ".join(ROWS[1]).split()
    assert [line.rstrip() for line in (heading, first, second)] == [heading, first, second]
    assert first.index("succeeded") == second.index("failed") == heading.index("status")


def test_names_are_whole_in_a_wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the last column of a table is wrapped; markup in a value is text."""
    text = printed(monkeypatch, width=90)
    assert "┃" in text
    assert ROWS[0][0] in text
    assert "[/b]" in text
    assert "…" not in text


@pytest.mark.parametrize("width", [40, 60])
def test_a_narrow_terminal_has_paragraphs(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    """If the columns do not fit, each row is a paragraph with the names of its columns and whole values."""
    text = printed(monkeypatch, width=width)
    first, second = (" ".join(part.split()) for part in text.split("\njob: "))
    assert first == f"job: {ROWS[0][0]} status: succeeded video or reason: {ROWS[0][2]}"
    assert second == " ".join(f"{ROWS[1][0]} status: failed video or reason: {ROWS[1][2]}".split())
    assert all(len(line) <= width for line in text.splitlines() if " " in line.strip())


def test_a_table_without_rows_has_its_heading(monkeypatch: pytest.MonkeyPatch) -> None:
    """A table without rows is its heading, also in a narrow terminal."""
    console = Console(width=10, force_terminal=True, file=io.StringIO())
    monkeypatch.setattr(terminal, "console", console)
    terminal.print_table(NAMES, [])
    assert console.file.getvalue() == "job  status  video or reason\n"


def test_an_unknown_width_hides_no_output(tmp_path: os.PathLike[str]) -> None:
    """`COLUMNS=0`, which some tools set for a terminal without a size, counts as not set."""
    environment = os.environ | {"S2V_HOME": str(tmp_path), "COLUMNS": "0"}
    command = [sys.executable, "-m", "s2v_tasks.cli", "help"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert "Measure faces" in done.stdout


def test_a_terminal_without_utf_8_shows_escapes(tmp_path: os.PathLike[str]) -> None:
    """Characters that the encoding of the output lacks are escapes, and no traceback."""
    code = (
        "import s2v_tasks.cli as cli, typer\n"
        "cli.load_commands, cli.app = lambda: None, lambda: typer.echo('Grüße 🎬')\n"
        "cli.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONIOENCODING": "latin-1", "S2V_HOME": str(tmp_path)},
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == "Grüße \\U0001f3ac\n".encode("latin-1")


def test_ctrl_c_while_commands_are_imported_shows_no_traceback(tmp_path: os.PathLike[str]) -> None:
    """The process ends by the signal at once; later Ctrl-C is KeyboardInterrupt again."""
    for loads, expected in (("os.kill(os.getpid(), signal.SIGINT)", -signal.SIGINT), ("None", 0)):
        code = (
            "import os, signal, s2v_tasks.cli as cli\n"
            # Tests that run in the background ignore Ctrl-C, and so do their children.
            "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
            f"cli.load_commands = lambda: {loads}\n"
            "cli.app = lambda: print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)\n"
            "cli.main()"
        )
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"S2V_HOME": str(tmp_path)},
            capture_output=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (expected, b"")
        assert done.stdout == (b"" if expected else b"True\n")


def _close_streams() -> None:
    for number in range(3):
        os.close(number)


def test_closed_streams_are_no_error(tmp_path: os.PathLike[str]) -> None:
    """A service without standard streams gets the exit code of the command; a reader that ends early, no traceback."""
    command = [sys.executable, "-m", "s2v_tasks.cli"]
    environment = os.environ | {"S2V_HOME": str(tmp_path)}
    for arguments, expected in ((["--version"], 0), (["link"], 2), (["db", "upgrade"], 78)):
        done = subprocess.run([*command, *arguments], env=environment, preexec_fn=_close_streams, check=False)
        assert done.returncode == expected
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([*command, "help"], env=environment, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")
