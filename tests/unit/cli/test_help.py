"""Check the help of commands, and the errors for unknown ones."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


def s2v(home: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run the command line in a process of its own, without an installation."""
    environment = os.environ | {"S2V_HOME": str(home), "COLUMNS": "200", "NO_COLOR": "1"}
    command = [sys.executable, "-m", "s2v_tasks.cli", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_help_is_that_of_the_command(tmp_path: Path) -> None:
    """`s2v help snapshot verify` prints what `s2v snapshot verify --help` prints; without a command all are listed."""
    helped, asked = s2v(tmp_path, "help", "snapshot", "verify"), s2v(tmp_path, "snapshot", "verify", "--help")
    assert helped.returncode == asked.returncode == 0
    assert helped.stdout == asked.stdout
    assert "SHA256SUMS" in helped.stdout
    assert "summarise-batch" in s2v(tmp_path, "help").stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["help", "jbos"], "No such command 'jbos'. Did you mean 'jobs'?"),
        (["watch", "talk"], "No such command 'watch'. It is an option: `s2v submit --watch`, `s2v rerun --watch`, "),
        (["jobs", "--limit", "abc"], "'--limit': 'abc' is not a whole number from 1 to 1000."),
        (["jobs", "--limit=-1"], "'--limit': '-1' is not a whole number from 1 to 1000."),
        (["retry", "--code", ""], "'--code': '' is not a whole number."),
        (["rerun", "talk", "--from-clip", "2.5"], "'--from-clip': '2.5' is not a whole number of at least 0."),
        (["deliver-notifications", "--seconds", "nan"], "'--seconds': 'nan' is not a number of at least 1."),
        (["jobs", "--status", "done"], "'--status': 'done' is not one of 'queued', "),
        (["costs", "--since", "monday"], "'--since': 'monday' does not match the formats '%Y-%m-%d', "),
        (["version"], "No such command 'version'. It is an option: `s2v --version`."),
    ],
)
def test_a_usage_error_has_the_value_and_the_remedy(tmp_path: Path, arguments: list[str], said: str) -> None:
    """A misspelled command, an option without dashes and a wrong value end with code 2 and the right words."""
    done = s2v(tmp_path, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
