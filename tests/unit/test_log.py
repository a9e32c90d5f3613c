"""Check the stream of the logs."""

import subprocess
import sys

PROGRAM = """
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


def test_a_lost_reader_of_the_logs_does_not_end_the_work() -> None:
    """A step whose task is killed writes into a pipe without a reader. It still saves its state."""
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdin
        assert process.stdout
        assert process.stderr
        assert "read" in process.stderr.readline()
        process.stderr.close()
        process.stdin.write("\n")
        process.stdin.close()
        assert process.stdout.read() == "the work is done\n"
    assert process.returncode == 0
