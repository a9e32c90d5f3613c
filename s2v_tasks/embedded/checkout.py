"""The checkout, from which Airflow runs: its path, and digests of what processes keep from their start."""

import contextlib
import hashlib
import importlib.metadata
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from s2v_tasks.errors import ConfigurationError
from s2v_tasks.settings import PREFIX

CHECKOUT = Path(__file__).parents[2]


def digest_code() -> str:
    """Return a digest of all that a process of Airflow reads once: package, DAGs, version of Airflow."""
    digest = hashlib.sha256(importlib.metadata.version("apache-airflow-core").encode())
    for folder in (CHECKOUT / "s2v_tasks", CHECKOUT / "dags"):
        for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"):
            digest.update(os.fsencode(path.relative_to(CHECKOUT)) + b"\0" + path.read_bytes())
    return digest.hexdigest()


def digest_settings(environment: Mapping[str, str]) -> dict[str, str]:
    """Return a digest of each setting of the package in the environment, by name."""
    given = {name: value for name, value in environment.items() if name.startswith(PREFIX)}
    return {name: hashlib.sha256(os.fsencode(value)).hexdigest() for name, value in given.items()}


def without_variables(path: Path) -> Path:
    """Return a path to the same folder without `$`, which Airflow would replace as a variable."""
    if "$" not in str(path):
        return path
    alias = Path(tempfile.gettempdir()) / f"s2v-{hashlib.sha256(os.fsencode(path)).hexdigest()[:16]}"
    with contextlib.suppress(FileExistsError):
        alias.symlink_to(path)
    # Any account can write to the folder: the link must belong to this one.
    if not alias.is_symlink() or alias.readlink() != path or alias.lstat().st_uid != os.geteuid():
        raise ConfigurationError(f"{alias} exists: expected a link to {path}. Remove it.")
    return alias
