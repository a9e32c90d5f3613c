"""The configuration of the embedded Airflow."""

import socket
from pathlib import Path

import pytest

from s2v_tasks.embedded.airflow import AirflowInstallation

DATABASE_URL = "postgresql://s2v:secret@127.0.0.1:5432/airflow"


def test_it_listens_and_calls_itself_on_loopback_only(tmp_path: Path) -> None:
    """UI, API and the address that tasks report to are on 127.0.0.1, on one port."""
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
    """A second start finds the same port and keys, in a file that only its owner may read."""
    first = AirflowInstallation(tmp_path).environment(DATABASE_URL)
    assert AirflowInstallation(tmp_path).environment(DATABASE_URL) == first
    assert (tmp_path / "airflow" / "server.json").stat().st_mode & 0o777 == 0o600


def test_a_taken_port_is_left_to_its_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At a start, Airflow moves to a free port with its keys; while something of it runs, it stays."""
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
    """A live scheduler must not see the runs of the demo: another folder, other keys."""
    serving = AirflowInstallation(tmp_path).environment(DATABASE_URL)
    demo = AirflowInstallation(tmp_path, "airflow-demo").environment(DATABASE_URL)
    for name in ("AIRFLOW_HOME", "AIRFLOW__API_AUTH__JWT_SECRET"):
        assert serving[name] != demo[name]


def test_airflow_settings_of_the_machine_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An AIRFLOW_* variable of another installation does not leak in."""
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", "CeleryExecutor")
    monkeypatch.setenv("AIRFLOW_CONN_OTHER", "x")
    environment = AirflowInstallation(tmp_path).environment(DATABASE_URL)
    assert environment["AIRFLOW__CORE__EXECUTOR"] == "LocalExecutor"
    assert "AIRFLOW_CONN_OTHER" not in environment


def test_nothing_runs_before_the_first_start(tmp_path: Path) -> None:
    """Asking for the state creates nothing and finds nothing."""
    installation = AirflowInstallation(tmp_path)
    assert installation.running() == []
    assert list(tmp_path.iterdir()) == []
