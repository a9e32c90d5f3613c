"""The package sources of this machine, for builds that must use them without a trace in an image.

The configuration of pip, the certificates and the local folders of wheels are mounted while an image is built.
"""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

CONFIG_IN_IMAGE = "/etc/pip.conf"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
_DEFAULT_INDEX = "https://pypi.org/simple"  # pip's own


class PackageSources:
    """pip's configuration of this machine."""

    def __init__(self, folder: Path) -> None:
        options = _pip_options()
        self._options = options
        self._config = folder / "pip.conf"
        lines = [f"{name} = {value}" for name, value in sorted(options.items())]
        self._config.write_text("\n".join(["[global]", *lines, ""]), encoding="utf-8")
        self._config.chmod(0o644)

    def local_paths(self) -> list[str]:
        """Return the files and folders of this machine that the configuration names."""
        words = [word.removeprefix("file://") for value in self._options.values() for word in value.split()]
        roots = {_root_of_index(word) for word in words if word.startswith("/") and Path(word).exists()}
        return sorted(roots)

    def mounts(self) -> list[str]:
        """Return the options of `buildah` that mount the configuration and what it names, read-only."""
        volumes = [f"{self._config}:{CONFIG_IN_IMAGE}:ro", *(f"{path}:{path}:ro" for path in self.local_paths())]
        return [f"--volume={volume}" for volume in volumes]

    def torch_index(self) -> str:
        """Return the index for a CPU build of torch: TORCH_INDEX_URL, else that of pip if a local folder has it."""
        folders = [Path(word) for word in self._options.get("find-links", "").split()]
        here = any(list(folder.glob("torch-*+cpu-*.whl")) for folder in folders if folder.is_dir())
        own = self._options.get("index-url", _DEFAULT_INDEX)
        return os.environ.get("TORCH_INDEX_URL") or (own if here else CPU_INDEX)

    def hosts(self) -> set[str]:
        """Return the hosts of the indexes that pip is configured with here; images must not name them."""
        urls = [word for value in self._options.values() for word in value.split()]
        found = {urlsplit(url).hostname or "" for url in urls if url.startswith("http")}
        return found - {"", urlsplit(CPU_INDEX).hostname}


def _pip_options() -> dict[str, str]:
    """Return the effective options of pip: those of its files, then those of the environment."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, str] = {}
    for source in ("global", "user", "install", ":env:"):
        for name, value in re.findall(rf"^{source}\.([\w-]+)=(.+)$", done.stdout, re.MULTILINE):
            found[name] = " ".join(str(ast.literal_eval(value)).split())
    return found


def _root_of_index(path: str) -> str:
    """Return the folder to mount for a path: the files of an index lie beside its folder `simple`."""
    return str(Path(path).parent) if Path(path).name == "simple" else path
