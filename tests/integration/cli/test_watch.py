"""Check `s2v job ID --watch` on a pseudo terminal."""

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator

import psycopg
import pytest

from s2v_tasks.metadata.session import create_engine
from s2v_tasks.metadata.store import MetadataStore

ROWS, COLUMNS = 24, 80
# The output for a terminal: control sequences, line feeds and returns, and text between them.
_OUTPUT = re.compile(r"\x1b\[\??(?P<number>[\d;]*)(?P<code>[A-Za-z])|(?P<move>[\r\n])|[^\x1b\r\n]+")


class Terminal:
    """A command on a pseudo terminal; `screen` has the rows that a person sees."""

    def __init__(self, *arguments: str) -> None:
        self.output = ""
        self._descriptor, child = pty.openpty()
        fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        # Ctrl-C ends what a person starts, also where the tests themselves were started to ignore it.
        command = ["env", "--default-signal=INT", sys.executable, "-m", "s2v_tasks.cli", *arguments]
        self.process = subprocess.Popen(command, stdin=child, stdout=child, stderr=child, start_new_session=True)
        os.close(child)

    def read_until(self, words: str) -> None:
        """Read the output of the command until these words are on the screen."""
        while not any(words in row for row in self.screen):
            assert select.select([self._descriptor], [], [], 30)[0], self.screen
            self.output += os.read(self._descriptor, 65536).decode()

    def end(self) -> int:
        """Read the output to its end; return the exit code."""
        try:
            while chunk := os.read(self._descriptor, 65536):
                self.output += chunk.decode()
        except OSError:  # how Linux says that the other side is closed
            pass
        os.close(self._descriptor)
        return self.process.wait(30)

    @property
    def screen(self) -> list[str]:
        rows, row, column = [""], 0, 0
        for part in _OUTPUT.finditer(self.output):
            if part["move"] == "\r":
                column = 0
            elif part["move"] == "\n":
                row += 1
                rows += [""] * (row + 1 - len(rows))
            elif part["code"] == "A":
                row -= int(part["number"] or 1)
            elif part["code"] == "K":
                rows[row] = ""
            elif not part["code"]:
                rows[row] = rows[row][:column] + part[0] + rows[row][column + len(part[0]) :]
                column += len(part[0])
        return [text.rstrip() for text in rows if text.strip()]


@pytest.fixture
def metadata(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[MetadataStore]:
    """A job that runs, with one clip of forty steps."""
    monkeypatch.setenv("S2V_DATABASE_URL", postgres_url)
    monkeypatch.setenv("TERM", "xterm-256color")
    engine = create_engine(postgres_url)
    metadata = MetadataStore(engine)
    metadata.jobs.enqueue("talk", {})
    metadata.jobs.start("talk")
    with psycopg.connect(postgres_url) as connection:
        connection.execute(
            "INSERT INTO clips (job_id, clip_index, status, start_frame, end_frame, progress_steps) "
            "VALUES ('talk', 0, 'pending', 0, 80, 40), ('talk', 1, 'pending', 80, 160, 40)"
        )
    yield metadata
    engine.dispose()


def test_a_job_is_redrawn_in_place_to_its_end(metadata: MetadataStore) -> None:
    """Two rows show the state and a bar with steps, clips and time left; at the end one row shows the result."""
    terminal = Terminal("job", "talk", "--watch")
    terminal.read_until("0/80 steps")
    metadata.clips.start("talk", 0, "f")
    metadata.clips.record_progress("talk", 0, 10, 40, eta_seconds=60.0, gpu_memory_bytes=3 * 2**30)
    terminal.read_until("10/80 steps, 0/2 clips  eta 0:02:20")
    assert terminal.screen[0] == "talk  clip 1/2 step 10/40  3.0 GiB"
    assert len(terminal.screen) == 2
    assert max(map(len, terminal.screen)) <= COLUMNS
    metadata.jobs.fail("talk", "validate: the sound is [late].")
    assert terminal.end() == 75
    headline, bar, end = terminal.screen
    assert (headline, end) == ("talk  failed", "talk failed: validate: the sound is [late].")
    assert "10/80 steps" in bar
    assert terminal.output.rindex("\x1b[?25h") > terminal.output.rindex("\x1b[?25l")  # the cursor is back


def test_ctrl_c_ends_the_display_only(metadata: MetadataStore) -> None:
    """Ctrl-C ends the display and prints that the job continues."""
    terminal = Terminal("job", "talk", "--watch")
    terminal.read_until("0/80 steps")
    terminal.process.send_signal(signal.SIGINT)
    assert terminal.end() == 1
    assert "The job continues; `s2v cancel talk` ends it." in " ".join(terminal.screen)
    assert "Traceback" not in terminal.output
