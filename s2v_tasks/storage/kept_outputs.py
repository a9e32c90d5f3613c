"""Keep the outputs of a build on the local disk while the store is unavailable.

The next attempt on the same machine stores them instead of building them again. Another machine builds again, and so
does another pod unless S2V_WORK_DIR is a persistent volume.
"""

import json
import os
import shutil
import tempfile
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from s2v_tasks.log import get_logger
from s2v_tasks.schemas.manifest import Facts
from s2v_tasks.storage.objects import file_sha256

KEPT_SECONDS = 7 * 24 * 3600.0
_DESCRIPTION = "built.json"


@dataclass(frozen=True)
class OutputFile:
    """A finished local file and its destination: a key of the job, or an `s3://` URI."""

    path: Path
    key: str
    content_type: str


@dataclass(frozen=True)
class Built:
    """The result of a build: its files by name, and small facts for the manifest."""

    outputs: dict[str, OutputFile]
    facts: Facts


class KeptOutputs:
    """Outputs by job and fingerprint, in a folder that belongs to this account alone.

    The job is part of the key: another job with the same fingerprint stores its outputs elsewhere.
    """

    def __init__(self, work_dir: Path | None) -> None:
        self._root = (work_dir or Path(tempfile.gettempdir())) / f"s2v-kept-{os.getuid()}"

    def has(self, job_id: str, fingerprint: str) -> bool:
        """Return True if the local disk has outputs of this work that could not be stored in S3."""
        return self._is_ours() and self._folder(job_id, fingerprint).is_dir()

    def put(self, job_id: str, fingerprint: str, built: Built) -> None:
        """Move the outputs here. A failure is only logged, because the caller raises the error of the upload."""
        folder, part = self._folder(job_id, fingerprint), self._root / f"{uuid.uuid4().hex}.part"
        try:
            self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not self._is_ours():
                raise PermissionError(f"{self._root} belongs to another account")
            self._forget_old()
            part.mkdir()
            (part / _DESCRIPTION).write_text(json.dumps(_description(built)), encoding="utf-8")
            for name, file in built.outputs.items():
                shutil.move(file.path, part / name)
            shutil.rmtree(folder, ignore_errors=True)
            part.rename(folder)
        except OSError as error:
            shutil.rmtree(part, ignore_errors=True)
            get_logger().error("outputs_not_kept", error=str(error))
            return
        get_logger().warning("outputs_kept_on_disk", folder=str(folder))

    def take(self, job_id: str, fingerprint: str, folder: Path) -> Built | None:
        """Move the outputs of this work into `folder` and return them; None if they are missing or damaged."""
        if not self.has(job_id, fingerprint):
            return None
        taken = folder / "kept"
        try:
            self._folder(job_id, fingerprint).rename(taken)  # of two attempts only one succeeds
        except FileNotFoundError:
            return None
        try:
            built = _read(taken)
        except (OSError, ValueError) as error:
            get_logger().warning("kept_outputs_damaged", fingerprint=fingerprint, error=str(error))
            return None
        get_logger().info("kept_outputs_found", fingerprint=fingerprint)
        return built

    def _folder(self, job_id: str, fingerprint: str) -> Path:
        return self._root / f"{job_id}.{fingerprint}"

    def _is_ours(self) -> bool:
        """Return True if this account owns the folder and no other account can write to it."""
        try:
            status = self._root.lstat()
        except OSError:
            return False
        return status.st_uid == os.getuid() and status.st_mode & 0o170022 == 0o040000

    def _forget_old(self) -> None:
        """Delete outputs that no attempt has used for a week."""
        for folder in self._root.iterdir():
            with suppress(FileNotFoundError):  # another process has just taken it
                if folder.stat().st_mtime < time.time() - KEPT_SECONDS:
                    shutil.rmtree(folder, ignore_errors=True)


def _read(folder: Path) -> Built:
    """Return the outputs in a folder; OSError or ValueError if they were changed."""
    description = json.loads((folder / _DESCRIPTION).read_text(encoding="utf-8"))
    outputs = {}
    for name, item in description["outputs"].items():
        outputs[name] = OutputFile(folder / name, item["key"], item["content_type"])
        if file_sha256(folder / name) != item["sha256"]:
            raise ValueError(f"{name} has changed since it was kept")
    return Built(outputs, Facts.model_validate(description["facts"]))


def _description(built: Built) -> dict[str, Any]:
    outputs = {
        name: {"key": file.key, "content_type": file.content_type, "sha256": file_sha256(file.path)}
        for name, file in built.outputs.items()
    }
    return {"outputs": outputs, "facts": built.facts.model_dump(mode="json")}
