"""Check the lines of a process: JSON if S2V_LOG_JSON is set, whoever writes them, and lost if nobody reads them."""

import json
import os
import subprocess
import sys
from typing import Any

PROGRAM = """
import logging, threading, warnings
from s2v_tasks import log

log.configure(json_lines=True)
log.bind(job_id="talk")
log.get_logger().info("started", size=3)
warnings.warn("this is old")
logging.getLogger("library").error("two\\nlines")
own = logging.getLogger("with a handler")
own.propagate = False
own.addHandler(logging.StreamHandler())
own.error("three")
thread = threading.Thread(target=lambda: 1 / 0)
thread.start()
thread.join()
raise ValueError("the end")
"""

UNREAD = """
import sys
from s2v_tasks import log
log.configure(json_lines=False)
log.get_logger().info("read")
sys.stdin.readline()
for step in range(3):
    log.get_logger().info("lost", step=step)
print("an error of another module", file=sys.stderr)
print("the work is done")
"""


DEFECT = """
from s2v_tasks import log

def connect(password):
    raise KeyError("place")

for json_lines in (False, True):
    log.configure(json_lines=json_lines)
    try:
        connect("".join(["hunter", "2"]))
    except KeyError:
        log.get_logger().exception("postponed")
"""


def lines(arguments: list[str], **environment: str) -> list[dict[str, Any]]:
    """Return the lines on stderr of a program that fails."""
    done = subprocess.run(
        [sys.executable, *arguments], env=os.environ | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    return [json.loads(line) for line in done.stderr.splitlines()]


def test_every_line_is_json() -> None:
    """Events, warnings, messages of libraries and tracebacks, also of threads, are one object each with the job."""
    found = lines(["-c", PROGRAM])
    assert [line["job_id"] for line in found] == ["talk"] * 6
    assert [line["level"] for line in found] == ["info", "warning", "error", "warning", "error", "error"]
    assert "this is old" in found[1]["event"]
    assert (found[2]["event"], found[2]["logger"]) == ("two\nlines", "library")
    assert found[3]["event"] == "three"
    assert found[4]["exception"].endswith("ZeroDivisionError: division by zero")
    assert found[5]["exception"].endswith("ValueError: the end")


def test_a_traceback_shows_no_variables() -> None:
    """The log has the lines of the program that failed, and no value of a variable, which may be a secret."""
    done = subprocess.run([sys.executable, "-c", DEFECT], capture_output=True, text=True, check=True)
    assert done.stderr.count("KeyError: 'place'") == 2
    assert "hunter2" not in done.stderr


def test_the_error_of_a_command_is_json() -> None:
    """The sentence that ends a command is a JSON line with the class of the error."""
    (line,) = lines(["-m", "s2v_tasks.cli", "measure", "missing.mp4"], S2V_LOG_JSON="true")
    assert line["event"] == "command_failed"
    assert line["kind"] == "PermanentError"
    assert "missing.mp4" in line["error"]


def test_a_lost_reader_of_the_logs_does_not_end_the_work() -> None:
    """A step whose task is killed writes into a pipe without a reader. It still saves its state."""
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", UNREAD], stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdin
        assert process.stdout
        assert process.stderr
        assert "read" in process.stderr.readline()
        process.stderr.close()
        process.stdin.write("\n")
        process.stdin.close()
        assert process.stdout.read() == "the work is done\n"
    assert process.returncode == 0
