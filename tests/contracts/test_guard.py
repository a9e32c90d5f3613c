"""Check that services end with the process that uses them, in whatever way it ends."""

import fcntl
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from s2v_tasks.embedded import guard
from s2v_tasks.embedded.guard import Ending, end_leftovers, guarded, temporary_home
from s2v_tasks.embedded.object_store import S3Server
from s2v_tasks.embedded.postgres import PostgresServer
from s2v_tasks.embedded.stack import Services

# Starts both servers as a run of tests does, one of them in a home within the home; then waits to be killed.
TEST_RUN = """
import sys, time
from pathlib import Path
from s2v_tasks.embedded.guard import temporary_home
from s2v_tasks.embedded.object_store import S3Server
from s2v_tasks.embedded.postgres import PostgresServer
with temporary_home() as home:
    PostgresServer(home).start()
    (home / "other").mkdir()
    S3Server(home / "other").start()
    print(home, (home / "postgres/data/postmaster.pid").read_text().split()[0],
          (home / "other/s3/server.pid").read_text(), flush=True)
    time.sleep(600)
"""
# Uses the PostgreSQL of a home folder as a demo does, held by the lock of its users.
USER = """
import fcntl, sys, time
from pathlib import Path
from s2v_tasks.embedded.guard import guarded
from s2v_tasks.embedded.postgres import PostgresServer
home = Path(sys.argv[1])
with (home / "users.lock").open("w") as users, guarded(home, sys.argv[2]):
    fcntl.flock(users, fcntl.LOCK_SH)
    PostgresServer(home).start()
    print("ready", flush=True)
    time.sleep(600)
"""


Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a process that runs Python code; the process is ended after the test."""
    started: list[subprocess.Popen[str]] = []

    def start(code: str, *arguments: str) -> "subprocess.Popen[str]":
        started.append(subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for process in started:
        kill(process)


def line_of(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    while not (line := process.stdout.readline()).startswith(("/", "ready")):
        assert process.poll() is None
    return line


def kill(process: "subprocess.Popen[str]") -> None:
    """Kill the process as a time limit of CI does."""
    process.kill()
    process.wait()
    if process.stdout:
        process.stdout.close()


def wait_until_gone(*pids: int) -> None:
    for pid in pids:
        while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
            os.sched_yield()


def test_the_servers_of_a_killed_test_run_end(start: Start) -> None:
    """All servers of a killed test run end, also those of other accounts and nested homes; the folder is removed."""
    run = start(TEST_RUN)
    home, *pids = line_of(run).split()
    guards = [child.pid for child in psutil.Process(run.pid).children()]
    kill(run)
    wait_until_gone(*map(int, pids), *guards)
    assert not Path(home).exists()


def test_a_run_whose_guard_is_killed_too_is_found_by_the_next(
    start: Start,
) -> None:
    """If the guard is killed too, the next run ends the servers, but only of owners that have ended."""
    run = start(TEST_RUN)
    home, *pids = line_of(run).split()
    end_leftovers()
    assert all(psutil.pid_exists(int(pid)) for pid in pids)
    guards = [child for child in psutil.Process(run.pid).children() if "s2v_tasks.embedded.guard" in child.cmdline()]
    (own_guard,) = guards
    own_guard.kill()
    kill(run)
    assert all(psutil.pid_exists(int(pid)) for pid in pids)
    with temporary_home() as next_home:
        wait_until_gone(*map(int, pids))
        assert not Path(home).exists()
        assert next_home.exists()
    assert not next_home.exists()


def test_a_service_ends_with_the_last_that_uses_it(server_home: Path, start: Start) -> None:
    """A service with two users ends when the second user has ended, even if the first was killed."""
    home = server_home / "shared"
    home.mkdir()
    first, second = (start(USER, str(home), "release") for _ in range(2))
    assert (line_of(first), line_of(second)) == ("ready\n", "ready\n")
    guards = [child.pid for user in (first, second) for child in psutil.Process(user.pid).children()]
    server = PostgresServer(home)
    kill(first)
    wait_until_gone(guards[0])
    assert server.is_running()
    kill(second)
    wait_until_gone(guards[1])
    assert not server.is_running()


def test_the_services_of_a_killed_start_end_unless_the_next_uses_them(server_home: Path, start: Start) -> None:
    """The guard of a killed `make up` stops nothing that another process uses by then."""
    home = server_home / "started-again"
    home.mkdir()
    first = start(USER, str(home), "down")
    line_of(first)
    (own_guard,) = (child.pid for child in psutil.Process(first.pid).children() if "guard" in " ".join(child.cmdline()))
    server = PostgresServer(home)
    with (home / "users.lock").open("w") as users:
        fcntl.flock(users, fcntl.LOCK_SH)
        kill(first)
        wait_until_gone(own_guard)
        assert server.is_running()
    guard._end(home, "down")
    assert not server.is_running()


def test_a_guard_ends_with_its_block(server_home: Path) -> None:
    """After the block has ended, with or without an error, no guard runs and no guard stops a server."""
    home = server_home / "orderly"
    home.mkdir()
    server = PostgresServer(home)
    server.start()
    for ending in ("release", "down", "remove"):
        with pytest.raises(ZeroDivisionError):
            fail_within(home, ending)
        # A child of an earlier test may be a zombie, which has no command line.
        running = [child.as_dict(["cmdline"])["cmdline"] or [] for child in psutil.Process().children()]
        assert not [command for command in running if str(home) in command]
    assert server.is_running()
    guard._end(home, "release")
    assert not server.is_running()
    assert home.exists()


def fail_within(home: Path, ending: Ending) -> None:
    with guarded(home, ending):
        raise ZeroDivisionError


def test_a_home_with_a_stale_mark_of_another_process_is_a_leftover(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A home whose owner has ended is a leftover even if its pid is used again; one whose owner runs is not."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for name, mark in (("old", f"{os.getpid()} 1.0"), ("mine", guard._identity(os.getpid()))):
        (tmp_path / f"s2v-home-{name}").mkdir()
        (tmp_path / f"s2v-home-{name}" / "owner").write_text(mark)
    end_leftovers()
    assert [path.name for path in tmp_path.iterdir()] == ["s2v-home-mine"]


def test_a_home_is_no_leftover_because_the_clock_was_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A change of the system clock by a second does not make a home in use a leftover."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with temporary_home() as home:
        began = psutil.Process().create_time()
        monkeypatch.setattr("psutil.Process.create_time", lambda _: began + 1)
        end_leftovers()
        assert home.exists()


def test_services_that_somebody_else_uses_are_not_released(server_home: Path) -> None:
    """Services are not released while another process holds their lock or while Airflow runs."""
    home = server_home / "in-use"
    services = Services(home)
    services.postgres.start()
    with (home / "users.lock").open("w") as users:
        fcntl.flock(users, fcntl.LOCK_SH)
        services.release()
        assert services.postgres.is_running()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("s2v_tasks.embedded.airflow.AirflowInstallation.running", lambda _: ["scheduler"])
        services.release()
        assert services.postgres.is_running()
    services.release()
    assert not services.postgres.is_running()
    assert not S3Server(home).is_running()
