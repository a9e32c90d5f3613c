"""Check the configuration of the embedded Airflow."""

import json
import socket
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from structlog.testing import capture_logs

from s2v_tasks.embedded import airflow, checkout
from s2v_tasks.embedded.airflow import AirflowInstallation
from s2v_tasks.errors import ConfigurationError

DATABASE_URL = "postgresql://s2v:secret@127.0.0.1:5432/airflow"


def test_it_listens_and_calls_itself_on_loopback_only(tmp_path: Path) -> None:
    """UI, API and the address for task reports are on 127.0.0.1, on one port."""
    installation = AirflowInstallation(tmp_path)
    environment = installation.environment(DATABASE_URL)
    assert environment["AIRFLOW__API__HOST"] == "127.0.0.1"
    assert (
        environment["AIRFLOW__API__BASE_URL"]
        == installation.url
        == "http://127.0.0.1:" + environment["AIRFLOW__API__PORT"]
    )
    assert environment["AIRFLOW__CORE__EXECUTION_API_SERVER_URL"] == f"{installation.url}/execution/"


def test_port_and_secrets_survive_a_restart_and_are_private(tmp_path: Path) -> None:
    """A second start finds the same port and keys in a file that only its owner may read."""
    first = AirflowInstallation(tmp_path).environment(DATABASE_URL)
    assert AirflowInstallation(tmp_path).environment(DATABASE_URL) == first
    assert (tmp_path / "airflow" / "server.json").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "airflow").stat().st_mode & 0o777 == 0o700  # it has the logs of tasks


def test_a_server_moves_from_an_occupied_port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At a start, Airflow moves to a free port with its keys; while a process of it runs, it does not move."""
    installation = AirflowInstallation(tmp_path)
    first = installation.environment(DATABASE_URL)
    port = int(first["AIRFLOW__API__PORT"])
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", port))
        other.listen()
        with monkeypatch.context() as patch:
            patch.setattr(AirflowInstallation, "running", lambda self: ["api-server"])
            assert installation.environment(DATABASE_URL) == first
        second = installation.environment(DATABASE_URL)
    assert second["AIRFLOW__API__PORT"] != first["AIRFLOW__API__PORT"]
    assert second["AIRFLOW__API__BASE_URL"] == installation.url
    assert second["AIRFLOW__API__SECRET_KEY"] == first["AIRFLOW__API__SECRET_KEY"]


def test_the_demo_shares_nothing_with_the_one_that_serves(tmp_path: Path) -> None:
    """The demo has a folder and keys of its own, so that no other scheduler sees its runs."""
    serving = AirflowInstallation(tmp_path).environment(DATABASE_URL)
    demo = AirflowInstallation(tmp_path, "airflow-demo").environment(DATABASE_URL)
    for name in ("AIRFLOW_HOME", "AIRFLOW__API_AUTH__JWT_SECRET"):
        assert serving[name] != demo[name]


def test_airflow_settings_of_the_machine_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """AIRFLOW_* variables of the machine are not passed on."""
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", "CeleryExecutor")
    monkeypatch.setenv("AIRFLOW_CONN_OTHER", "x")
    environment = AirflowInstallation(tmp_path).environment(DATABASE_URL)
    assert environment["AIRFLOW__CORE__EXECUTOR"] == "LocalExecutor"
    assert "AIRFLOW_CONN_OTHER" not in environment


@pytest.mark.parametrize(
    ("given", "expected"), [("", "127.0.0.1"), ("intranet,::1", "intranet,::1,127.0.0.1"), ("*", "*")]
)
def test_no_proxy_is_asked_for_the_api_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, expected: str
) -> None:
    """The processes of Airflow reach each other without the proxy of the environment."""
    monkeypatch.setenv("no_proxy", given)
    environment = AirflowInstallation(tmp_path).environment(DATABASE_URL)
    assert environment["no_proxy"] == environment["NO_PROXY"] == expected


@pytest.mark.parametrize(
    ("section", "option"),
    [
        ("core", "dagbag_import_timeout"),
        ("dag_processor", "dag_file_processor_timeout"),
        ("workers", "execution_api_timeout"),
    ],
)
def test_a_busy_machine_has_more_time_than_airflow_gives(tmp_path: Path, section: str, option: str) -> None:
    """Time limits between parts of Airflow are at least three times the defaults."""
    from airflow.configuration import conf

    environment = AirflowInstallation(tmp_path).environment(DATABASE_URL)
    default = float(conf.get_default_value(section, option))
    assert float(environment[f"AIRFLOW__{section}__{option}".upper()]) >= 3 * default


def test_nothing_runs_before_the_first_start(tmp_path: Path) -> None:
    """Reading the state creates no file and finds no process."""
    installation = AirflowInstallation(tmp_path)
    assert installation.running() == []
    assert list(tmp_path.iterdir()) == []


def test_the_api_server_ends_last(tmp_path: Path) -> None:
    """Workers report the end of their tasks to it; without it each of them waits until it is killed."""
    installation, ends = AirflowInstallation(tmp_path), tmp_path / "ends"
    installation.claim_port()
    code = """if True:
        import signal, sys, time
        name, path = sys.argv[1:]
        def end(*_):
            time.sleep(0 if "api" in name else 0.5)
            with open(path, "a") as ends:
                ends.write(name + chr(10))
            sys.exit()
        signal.signal(signal.SIGTERM, end)
        open(path + name, "w").close()
        time.sleep(60)
    """
    names = ["api-server", "scheduler", "dag-processor", "triggerer"]
    for name in names:
        command = [sys.executable, "-c", code, f"airflow {name}", str(ends)]
        installation._process(name).start(command, tmp_path / "log")
    while not all(Path(f"{ends}airflow {name}").exists() for name in names):
        time.sleep(0.05)
    installation.stop()
    ended = ends.read_text().splitlines()
    assert (sorted(ended), ended[-1]) == (sorted(f"airflow {name}" for name in names), "airflow api-server")


def test_the_scheduler_does_not_wait_for_its_tasks_in_vain(tmp_path: Path) -> None:
    """A stop ends the tasks too, also one that begins meanwhile; their workers and the scheduler end by themselves."""
    installation, ends = AirflowInstallation(tmp_path), tmp_path / "ends"
    installation.claim_port()
    program = tmp_path / "program.py"
    program.write_text("""if True:
        import signal, subprocess, sys, time
        path, title, *tasks = sys.argv[1:]
        def end(*_):
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            for task in tasks:  # as workers do, which still begin queued tasks
                subprocess.run([sys.executable, __file__, path, task])
            with open(path, "a") as ends:
                ends.write(title + chr(10))
            sys.exit()
        signal.signal(signal.SIGTERM, end)
        open(path + title, "w").close()
        time.sleep(60)
    """)
    tasks = ["airflow worker -- 01a22536", "airflow worker -- 01a22538"]
    command = [sys.executable, str(program), str(ends), "airflow scheduler", *tasks]
    installation._process("scheduler").start(command, tmp_path / "log")
    while not Path(f"{ends}airflow scheduler").exists():
        time.sleep(0.05)
    installation.stop()
    assert ends.read_text().splitlines()[-1] == "airflow scheduler"


def test_a_start_with_other_code_starts_all_processes_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes of the same code go on; after a change of the code none does. Settings never change silently."""
    installation = AirflowInstallation(tmp_path)
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    monkeypatch.setattr(airflow, "airflow_command", lambda name: [*command, f"airflow {name}"])
    monkeypatch.setattr(airflow, "_COMPONENTS", dict.fromkeys(airflow._COMPONENTS, ()))
    monkeypatch.setattr(installation, "migrate", lambda _: None)
    monkeypatch.setattr(installation, "_wait_until_healthy", lambda: None)

    def pids_after_start() -> set[int | None]:
        installation.start({"S2V_GPU": "cpu"})
        return {installation._process(name).pid() for name in airflow._COMPONENTS}

    first = pids_after_start()
    assert pids_after_start() == first
    for environment in ({"S2V_MODEL": "wan2.2-s2v-14b"}, {"S2V_MODEL": "other"}):
        with pytest.raises(ConfigurationError, match=r"began with other values of S2V_MODEL: .* `make down`"):
            installation.start(environment)
    installation.start({})
    monkeypatch.setattr(airflow, "digest_code", lambda: "changed")
    with pytest.raises(ConfigurationError, match="began with other values of S2V_GPU"):  # it would start without it
        installation.start({})
    changed = pids_after_start()
    assert len(changed) == len(first) == 4
    assert changed.isdisjoint(first)
    assert pids_after_start() == changed
    state = json.loads(installation._state_path.read_text())
    installation._state_path.write_text(json.dumps({name: state[name] for name in state if name != "settings"}))
    monkeypatch.setattr(airflow, "digest_code", lambda: "changed again")
    with pytest.raises(ConfigurationError, match="other values of settings that an older version did not record"):
        pids_after_start()
    installation.stop()


def test_the_code_is_that_of_package_and_dags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A change of a template or a DAG changes the code; a compiled file does not."""
    for folder in ("s2v_tasks", "dags"):
        (tmp_path / folder).mkdir()
    monkeypatch.setattr(checkout, "CHECKOUT", tmp_path)
    seen = [checkout.digest_code()]
    for name in ("s2v_tasks/page.html", "dags/job.py"):
        (tmp_path / name).write_text("changed")
        seen.append(checkout.digest_code())
    assert len(set(seen)) == 3
    (tmp_path / "dags" / "job.pyc").write_text("compiled")
    assert checkout.digest_code() == seen[-1]


def test_no_path_has_a_variable_for_airflow_to_replace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path with `$NAME`, which Airflow would expand, is reached by a link, the same at each start."""
    odd = tmp_path / "a $HOME"
    (odd / "dags").mkdir(parents=True)
    monkeypatch.setattr(airflow, "CHECKOUT", odd)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    environment = AirflowInstallation(odd).environment(DATABASE_URL)
    assert AirflowInstallation(odd).environment(DATABASE_URL) == environment
    for name, place in (("AIRFLOW_HOME", odd / "airflow"), ("AIRFLOW__CORE__DAGS_FOLDER", odd / "dags")):
        assert "$" not in environment[name]
        assert Path(environment[name]).resolve() == place
    assert environment["S2V_HOME"] == str(odd)
    plain = AirflowInstallation(tmp_path / "50 % o'brien").environment(DATABASE_URL)
    assert plain["AIRFLOW_HOME"] == str(tmp_path / "50 % o'brien" / "airflow")


@pytest.mark.parametrize("theirs", ["link", "folder"])
def test_a_link_that_is_not_ours_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, theirs: str) -> None:
    """A foreign link or folder at the path of the link is named and not replaced."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    link = checkout.without_variables(tmp_path / "$x")
    link.unlink()
    if theirs == "link":
        link.symlink_to(tmp_path)
    else:
        link.mkdir()
    with pytest.raises(ConfigurationError, match="exists: expected a link to"):
        checkout.without_variables(tmp_path / "$x")
    assert link.exists()


def test_a_start_logs_the_parts_that_it_waits_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A start logs each missing part once, and again if nothing changes for a long time."""
    answers: list[dict[str, str]] = [
        {},
        {"metadatabase": "healthy", "scheduler": "unhealthy", "dag_processor": "unhealthy"},
        {"metadatabase": "healthy", "scheduler": "unhealthy", "dag_processor": "unhealthy"},
        {"metadatabase": "healthy", "scheduler": "healthy", "dag_processor": "unhealthy"},
        *[{"metadatabase": "healthy", "scheduler": "healthy", "dag_processor": "healthy"}] * 3,
    ]
    seconds = iter([0.0, 1.0, 1.0, 3.0, 3.0, 5.0, 5.0, 7.0, 7.0, 9.0, 9.0, 20.0, 20.0])
    unread = iter([["s2v_batch.py", "speech_to_video.py"], ["speech_to_video.py"], []])
    installation = AirflowInstallation(tmp_path)
    monkeypatch.setattr(installation, "health", lambda: answers.pop(0))
    monkeypatch.setattr(installation, "_unread_dags", lambda: next(unread))
    monkeypatch.setattr(installation, "_process", lambda _: SimpleNamespace(pid=lambda: 1))
    clock = SimpleNamespace(monotonic=lambda: next(seconds), sleep=lambda _: None)
    monkeypatch.setattr(airflow, "time", clock)
    with capture_logs() as logs:
        installation._wait_until_healthy()
    assert [(line["waits_for"], line["seconds"]) for line in logs] == [
        ("api server", 1),
        ("scheduler, dag processor", 3),
        ("dag processor", 7),
        ("s2v_batch.py, speech_to_video.py", 9),
        ("speech_to_video.py", 20),
    ]


def test_a_start_waits_for_every_file_of_dags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A start waits until Airflow has the DAG or the import error of every file."""
    answers: dict[str, dict[str, Any]] = {
        "dags": {"dags": [{"relative_fileloc": name} for name in ("s2v_batch.py", "s2v_housekeeping.py")]},
        "importErrors": {"import_errors": [{"filename": "s2v_drop_folder.py"}]},
    }
    installation = AirflowInstallation(tmp_path)
    monkeypatch.setattr(installation, "_ask", lambda path: answers.get(path, {}))
    assert installation._unread_dags() == ["s2v_notifications.py", "speech_to_video.py"]
    answers["dags"]["dags"] += [{"relative_fileloc": name} for name in installation._unread_dags()]
    assert installation._unread_dags() == []


@pytest.mark.parametrize("setting", ["CORE__PLUGINS_FOLDER", "OPERATORS__DEFAULT_DEFERRABLE"])
def test_no_setting_is_needed_for_plugin_and_deferral(tmp_path: Path, setting: str) -> None:
    """Plugin folder and default of deferral are not set: an Airflow with default settings behaves the same."""
    assert f"AIRFLOW__{setting}" not in AirflowInstallation(tmp_path).environment(DATABASE_URL)
