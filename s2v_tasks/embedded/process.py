"""Start servers that keep running after their command, find them by a pid file, and end them by pid."""

import fcntl
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from s2v_tasks.errors import TransientError

_POLL_SECONDS = 0.05
# Below the ephemeral ports, so that another program seldom takes a stored port.
_PORTS = range(20000, 32000)
# Children of this process, which must be waited for, or they stay zombies.
_children: dict[int, subprocess.Popen[bytes]] = {}


@dataclass(frozen=True)
class DetachedProcess:
    """A process in a separate session. Pids are reused, so the command line of our process must have `marker`."""

    pid_path: Path  # its first line is the pid
    marker: str

    def pid(self) -> int | None:
        """Return the pid; None if the process has ended or the pid belongs to another process now."""
        pid = self._noted_pid()
        if pid is None:
            return None
        if child := _children.get(pid):
            # Not from /proc, where the command line is empty for an instant after the start.
            if child.poll() is None:
                return pid
            del _children[pid]
        return pid if self.marker in _command_line(pid) else None

    def start(self, command: Sequence[str], log_path: Path, **options: Any) -> None:
        """Start `command` detached and remember its pid; options go to Popen."""
        write_private(self.pid_path, f"{launch(command, log_path, **options).pid}\n")

    def forget_reused_pid(self) -> None:
        """Remove the pid file if its pid now belongs to another program, because a server would take it for itself."""
        pid = self._noted_pid()
        if pid is not None and self.pid() is None and _command_line(pid):
            self.pid_path.unlink(missing_ok=True)

    def stop(self, stop_signal: signal.Signals, timeout_seconds: float) -> None:
        """End the process with `stop_signal`, after the time limit with SIGKILL; do nothing if it has ended."""
        for chosen in (stop_signal, signal.SIGKILL):
            pid = self.pid()
            if pid is None:
                break
            with suppress(ProcessLookupError):
                os.kill(pid, chosen)
            deadline = time.monotonic() + timeout_seconds
            while self.pid() is not None and time.monotonic() < deadline:
                time.sleep(_POLL_SECONDS)
        if self.pid() is not None:
            raise TransientError(f"Process {self.pid()} ({self.marker}) does not end: end it by hand.")

    def session(self, marker: re.Pattern[str]) -> list[psutil.Process]:
        """Return the processes of its session whose command line has `marker`, also after its end."""
        leader = self._noted_pid()
        return [
            process
            for process in psutil.process_iter()
            if leader is not None and _session(process.pid) == leader and marker.search(_command_line(process.pid))
        ]

    def stop_left_behind(self, marker: str, timeout_seconds: float) -> int:
        """End the remaining processes of a killed process; return their number.

        These are the processes of its session whose command line has `marker`. They get SIGTERM to end in order, then
        SIGKILL.
        """
        leader = self._noted_pid()
        # A pid is not reused while a session has its number: the process with it is the leader.
        if leader is None or _runs(leader):
            return 0
        left = self.session(re.compile(re.escape(marker)))
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.terminate()
        _, stubborn = psutil.wait_procs(left, timeout_seconds)
        for process in stubborn:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(stubborn, timeout_seconds)
        return len(left)

    def _noted_pid(self) -> int | None:
        try:
            return int(self.pid_path.read_text().split()[0])
        except (FileNotFoundError, IndexError, ValueError):
            return None


def launch(command: Sequence[str], log_path: Path, **options: Any) -> "subprocess.Popen[bytes]":
    """Start `command` in a separate session, append its output to `log_path`, and pass options to Popen."""
    make_private(log_path.parent)
    with log_path.open("ab") as log:
        child = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            **options,
        )
    _children[child.pid] = child
    return child


def _command_line(pid: int) -> str:
    """Return the arguments of a process, separated by blanks; empty if it has ended or may not be read."""
    try:
        return " ".join(psutil.Process(pid).cmdline())
    except psutil.Error:
        return ""


def _runs(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except (ProcessLookupError, PermissionError):
        return None


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold a lock file, so that only one command at a time starts or stops a server."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def around_proxies() -> dict[str, str]:
    """Return the variables with which HTTP clients reach loopback without the proxy of the environment."""
    hosts = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    hosts = hosts if hosts == "*" else f"{hosts},127.0.0.1".removeprefix(",")
    return {"no_proxy": hosts, "NO_PROXY": hosts}


def free_ports(count: int) -> list[int]:
    """Return different TCP ports of the loopback address without a listener."""
    ports: list[int] = []
    while len(ports) < count:
        port = secrets.choice(_PORTS)
        if port not in ports and is_free(port):
            ports.append(port)
    return ports


def is_free(port: int) -> bool:
    """Return True if a server could listen on this port of the loopback address."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def make_private(folder: Path) -> None:
    """Create a folder that only its owner may open; an existing folder becomes private."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner may read; it appears whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.unlink(missing_ok=True)
    part.touch(mode=0o600, exist_ok=False)
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def read_state(path: Path) -> dict[str, Any]:
    """Return the state that a server stores between starts; empty before its first start."""
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


def log_tail(path: Path) -> str:
    """Return the last lines of a log, for an error message."""
    return "\n".join(path.read_text(errors="replace").splitlines()[-8:]) if path.exists() else "(no log)"
