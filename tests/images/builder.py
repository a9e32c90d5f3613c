"""Build the images of `docker/` with buildah, on local stand-ins for the base images that only a registry has.

A stand-in has the name that the Dockerfile asks for. That of Python is Debian with Debian's Python 3.11. That of
Airflow has the pinned Airflow and the account 50000 on top of it. They are kept in the storage between runs.
"""

import json
import os
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.contracts.pins import constraint
from tests.images.packages import PackageSources

ROOT = Path(__file__).parents[2]
PYTHON_BASE = "docker.io/library/python:3.11.14-slim-bookworm"
AIRFLOW_BASE = "docker.io/apache/airflow:{version}-python3.11"
_DEBIAN_PACKAGES = "python3,python3-venv,ca-certificates,curl"
# The folders that a build mounts over exist in the stand-in, so that no layer above gets them.
_PYTHON_STAND_IN = """FROM scratch
ADD base.tar /
RUN ln -s python3 /usr/bin/python && mkdir -p {folders} && touch {files}
"""
# As in the official image: the account 50000 of group 0, the environment on its PATH, and an entry point that takes the
# words of `airflow`.
_AIRFLOW_STAND_IN = """FROM {python}
RUN useradd --uid 50000 --gid 0 --home-dir /home/airflow --create-home airflow && \
    mkdir /opt/airflow && chown airflow:0 /opt/airflow
COPY --chmod=755 entrypoint /entrypoint
USER 50000
ENV AIRFLOW_HOME=/opt/airflow PATH=/home/airflow/.venv/bin:/usr/local/bin:/usr/bin:/bin
WORKDIR /opt/airflow
COPY constraints.txt /tmp/constraints.txt
RUN python3 -m venv /home/airflow/.venv && \
    pip install --no-cache-dir -c /tmp/constraints.txt apache-airflow=={version} asyncpg psycopg2-binary
ENTRYPOINT ["/entrypoint"]
"""
_ENTRY_POINT = """#!/bin/sh
case "${1:-}" in
airflow | bash | sh | python | s2v) exec "$@" ;;
*) exec airflow "$@" ;;
esac
"""


@dataclass(frozen=True)
class Build:
    """An image to build: its tag, the folder of its Dockerfile, its base, and its arguments."""

    tag: str
    folder: str
    base: str
    arguments: dict[str, str]


@dataclass(frozen=True)
class Built:
    """A finished image."""

    build: Build
    seconds: float
    config: dict[str, Any]

    def num_layers(self) -> int:
        """Return the number of layers that Docker makes above the base; buildah makes one of them all."""
        text = (ROOT / "docker" / self.build.folder / "Dockerfile").read_text(encoding="utf-8")
        words = [line.partition(" ")[0] for line in text.splitlines()]
        last = max(index for index, word in enumerate(words) if word == "FROM")
        return sum(word in {"ADD", "COPY", "RUN"} for word in words[last:])


class Builder:
    """buildah with a storage of its own."""

    def __init__(self, home: Path, work: Path) -> None:
        self._home = home
        self._work = work
        self._global = ["--root", str(home / "storage"), "--runroot", str(home / "run"), "--storage-driver", "overlay"]
        self.sources = PackageSources(work)

    def __call__(self, *arguments: str, cwd: Path = ROOT) -> str:
        """Return the output of a command of buildah; an error shows the end of its log."""
        log = self._work / "buildah.log"
        with log.open("w") as errors:
            done = subprocess.run(
                ["buildah", *self._global, *arguments],
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                cwd=cwd,
                env=os.environ | {"BUILDAH_ISOLATION": "chroot", "TMPDIR": str(self._work)},
                check=False,
            )
        if done.returncode:
            tail = (done.stdout + log.read_text(encoding="utf-8", errors="replace"))[-3000:]
            raise SystemExit(f"buildah {' '.join(arguments[:2])} ended with {done.returncode}:\n{tail}")
        return done.stdout

    def has(self, name: str) -> bool:
        """Return True if the storage has an image."""
        images = json.loads(self("images", "--json") or "[]") or []
        return any(name in (image.get("names") or []) for image in images)

    def python_base(self) -> str:
        """Return the name of the stand-in for Python; make it if it is not there."""
        if not self.has(PYTHON_BASE):
            with tempfile.TemporaryDirectory(dir=self._work) as context:
                command = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={_DEBIAN_PACKAGES}", "bookworm"]
                subprocess.run([*command, f"{context}/base.tar"], check=True)
                paths = ["/etc/pip.conf", *self.sources.local_paths()]
                files = [path for path in paths if not Path(path).is_dir()]
                folders = [path for path in paths if Path(path).is_dir()] + [str(Path(path).parent) for path in files]
                text = _PYTHON_STAND_IN.format(folders=" ".join(folders), files=" ".join(files))
                self._build_stand_in(PYTHON_BASE, Path(context), text, mounts=[])
        return PYTHON_BASE

    def airflow_base(self) -> str:
        """Return the name of the stand-in for Airflow; make it if it is not there."""
        version = constraint("apache-airflow")
        name = AIRFLOW_BASE.format(version=version)
        if not self.has(name):
            with tempfile.TemporaryDirectory(dir=self._work) as context:
                pins = (ROOT / "config" / "constraints-py311.txt").read_text(encoding="utf-8")
                Path(context, "constraints.txt").write_text(pins, encoding="utf-8")
                Path(context, "entrypoint").write_text(_ENTRY_POINT, encoding="utf-8")
                text = _AIRFLOW_STAND_IN.format(python=self.python_base(), version=version)
                self._build_stand_in(name, Path(context), text, mounts=self.sources.mounts())
        return name

    def build(self, wanted: Build) -> Built:
        """Build an image from its Dockerfile, without a cache and without a registry; it replaces an earlier one."""
        earlier = self.image_id(wanted.tag) if self.has(wanted.tag) else None
        arguments = [f"--build-arg={name}={value}" for name, value in wanted.arguments.items()]
        begun = time.monotonic()
        self(
            "build", "--isolation=chroot", "--format=docker", "--pull=never", "--no-cache", "--network=host",
            f"--tag={wanted.tag}", f"--file=docker/{wanted.folder}/Dockerfile", *arguments, *self.sources.mounts(), ".",
        )  # fmt: skip
        if earlier not in {None, self.image_id(wanted.tag)}:
            self("rmi", str(earlier))  # it has no name any more, but takes up to 2 GB
        return self.built(wanted, time.monotonic() - begun)

    def image_id(self, name: str) -> str:
        """Return the id of an image in the storage."""
        return str(json.loads(self("inspect", "--type=image", name))["FromImageID"])

    def built(self, wanted: Build, seconds: float = 0.0) -> Built:
        """Return what the storage says about an image."""
        about = json.loads(self("inspect", "--type=image", wanted.tag))
        return Built(wanted, round(seconds, 1), about["Docker"]["config"])

    def _build_stand_in(self, name: str, context: Path, text: str, mounts: list[str]) -> None:
        Path(context, "Dockerfile").write_text(text, encoding="utf-8")
        self(
            "build", "--isolation=chroot", "--format=docker", "--pull=never", "--network=host", f"--tag={name}",
            *mounts, str(context),
        )  # fmt: skip
