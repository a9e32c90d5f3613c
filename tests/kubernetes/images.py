"""The images for the pods: built from this checkout, and imported into the node's containerd."""

import json
import os
import re
import subprocess
import tempfile
from pathlib import Path

from s2v_tasks import __version__
from tests.images.builder import PYTHON_BASE, ROOT, Build, Builder
from tests.images.check import HOME

_LABEL = "s2v/image-id"


def import_image(kubeconfig: str, folder: str) -> str:
    """Return the name of the image of `docker/<folder>` ("engine" or "airflow"), which the node has then.

    An image in the storage is used if nothing that goes into it has changed since its commit.
    """
    tag = f"localhost/s2v-{folder}:check"
    HOME.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="s2v-images-") as work:
        builder = Builder(HOME, Path(work))
        if _has_changed_since(_revision(builder, tag), folder):
            builder.build(_wanted(builder, tag, folder))
        _import(builder, tag, Path(work) / "image.tar", kubeconfig)
    return tag


def _wanted(builder: Builder, tag: str, folder: str) -> Build:
    """Return the image to build; its revision names local changes."""
    git = ["git", "rev-parse", "HEAD"]
    revision = subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    revision += "-dirty" if _has_changed_since(revision, folder) else ""
    arguments = {"REVISION": revision, "VERSION": __version__}
    if folder == "airflow":
        return Build(tag, folder, builder.airflow_base(), arguments)
    builder.python_base()
    return Build(tag, folder, PYTHON_BASE, arguments | {"TORCH_INDEX_URL": builder.sources.torch_index()})


def _import(builder: Builder, tag: str, archive: Path, kubeconfig: str) -> None:
    """Import the image into the node's containerd unless the node has it; a label says which one it has."""
    socket = os.environ.get("CONTAINERD_SOCKET") or str(Path(kubeconfig).with_name("containerd.sock"))
    ctr = ["ctr", "--address", socket, "--namespace", "k8s.io", "images"]
    label = f"{_LABEL}={builder.image_id(tag)}"
    known = subprocess.run([*ctr, "list", f"name=={tag}"], capture_output=True, text=True, check=True).stdout
    if label not in known:
        builder("push", tag, f"docker-archive:{archive}:{tag}")
        for command in (["import", str(archive)], ["label", tag, label]):
            subprocess.run([*ctr, *command], check=True, stdout=subprocess.DEVNULL)
        for earlier in re.findall(rf"{_LABEL}=(\w+)", known):  # unless the kubelet has deleted it, it has this name
            subprocess.run([*ctr, "remove", f"sha256:{earlier}"], check=False, capture_output=True)


def _has_changed_since(commit: str | None, folder: str) -> bool:
    """Return True if a file that the image contains differs from a commit; also for a commit that is unknown."""
    if commit is None or commit.endswith("-dirty"):
        return True
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    inside = [f":(glob){line[1:]}" for line in lines if line.startswith("!")]
    folders = [f"{pattern}/**" for pattern in inside]
    paths = ["--", *inside, *folders, f"docker/{folder}/Dockerfile", ".dockerignore"]
    changed = subprocess.run(["git", "diff", "--quiet", commit, *paths], cwd=ROOT, check=False).returncode != 0
    new = subprocess.run(
        ["git", "ls-files", "--others", "--exclude-standard", *paths], cwd=ROOT, capture_output=True, check=True
    )
    return changed or bool(new.stdout)


def _revision(builder: Builder, tag: str) -> str | None:
    """Return the commit of the image in the storage; None if there is none."""
    if not builder.has(tag):
        return None
    about = json.loads(builder("inspect", "--type=image", tag))
    labels = about["Docker"]["config"].get("Labels") or {}
    return str(labels.get("org.opencontainers.image.revision"))
