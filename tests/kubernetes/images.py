"""The engine image for the pods: built from this checkout, and imported into the node's containerd."""

import json
import os
import subprocess
import tempfile
from pathlib import Path

from s2v_tasks import __version__
from tests.images.builder import PYTHON_BASE, ROOT, Build, Builder
from tests.images.check import HOME

TAG = "localhost/s2v-engine:check"


def import_engine_image(kubeconfig: str) -> str:
    """Return the name of the engine image of this checkout, which the node has then.

    An image that `make images-check` has kept is used if it is of the same commit and nothing has changed since then.
    """
    HOME.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="s2v-images-") as folder:
        builder = Builder(HOME, Path(folder))
        git = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
        revision = subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
        if revision.endswith("-dirty") or _revision(builder) != revision:
            builder.python_base()
            arguments = {"REVISION": revision, "VERSION": __version__, "TORCH_INDEX_URL": builder.sources.torch_index()}
            builder.build(Build(TAG, "engine", PYTHON_BASE, arguments))
        archive = Path(folder) / "engine.tar"
        builder("push", TAG, f"docker-archive:{archive}:{TAG}")
        socket = os.environ.get("CONTAINERD_SOCKET") or str(Path(kubeconfig).with_name("containerd.sock"))
        command = ["ctr", "--address", socket, "--namespace", "k8s.io", "images", "import", str(archive)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return TAG


def _revision(builder: Builder) -> str | None:
    """Return the commit of the image in the storage; None if there is none."""
    if not builder.has(TAG):
        return None
    about = json.loads(builder("inspect", "--type=image", TAG))
    labels = about["Docker"]["config"].get("Labels") or {}
    return str(labels.get("org.opencontainers.image.revision"))
