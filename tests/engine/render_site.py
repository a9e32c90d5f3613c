"""A job that is ready to be rendered, and attempts to render it in processes of their own."""

import json
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from s2v_tasks.metadata.records import ClipRecord
from s2v_tasks.metadata.repository import Ledger
from s2v_tasks.schemas.manifest import Manifest
from s2v_tasks.storage.layout import JobLayout
from s2v_tasks.storage.s3 import ObjectStore

JOB = "worker-test"


@dataclass
class Site:
    """A store, a database and a job that is ready to be rendered."""

    environment: dict[str, str]
    store: ObjectStore
    ledger: Ledger
    folder: Path
    layout: JobLayout

    def start(self, *launcher: str, count: int = 1) -> "Attempt":
        """`s2v render-clip` of the first `count` clips in processes of its own."""
        folder = self.folder / uuid.uuid4().hex
        folder.mkdir()
        arguments = ["render-clip", "--job-id", JOB, "--clip-index", "0", "--count", str(count)]
        with (folder / "stdout").open("wb") as stdout, (folder / "stderr").open("wb") as stderr:
            process = subprocess.Popen(
                [sys.executable, *launcher, *arguments],
                stdout=stdout,
                stderr=stderr,
                env=self.environment | {"STEP_ERROR_FILE": str(folder / "error.json")},
            )
        return Attempt(process, folder)

    def forget_the_clip(self) -> None:
        """Without its manifest a clip counts as not rendered."""
        self.store.delete(self.layout.clip_manifest(0))

    def manifest(self) -> Manifest:
        return Manifest.model_validate_json(self.store.get_bytes(self.layout.clip_manifest(0)))

    def partial_keys(self) -> list[str]:
        """What is kept of the clip beside its outputs."""
        folder = self.layout.partial_clip(0, str(self.clip().fingerprint), "")
        return sorted(item.uri.rpartition("/")[2] for item in self.store.listing(folder))

    def clip(self) -> ClipRecord:
        job = self.ledger.job(JOB)
        assert job is not None
        return job.clips[0]


@dataclass
class Attempt:
    """A running `s2v render-clip`."""

    process: subprocess.Popen[bytes]
    folder: Path

    def wait(self, timeout_seconds: float = 120) -> int:
        try:
            return self.process.wait(timeout_seconds)
        finally:
            self.process.kill()
            self.process.wait()

    def wait_for_steps(self) -> None:
        """Until a solver step is done."""
        while "step 1/" not in self.log:
            assert self.process.poll() is None, self.log
            time.sleep(0.02)

    @property
    def log(self) -> str:
        return (self.folder / "stderr").read_text()

    @property
    def error(self) -> dict[str, Any]:
        return dict(json.loads((self.folder / "error.json").read_text()))

    def pids(self, *marks: str) -> list[int]:
        """Its processes, or those of them that have the given variables (NAME=value) in their environment."""
        wanted = {mark.encode() for mark in (f"STEP_ERROR_FILE={self.folder}/error.json", *marks)}
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if wanted <= set((folder / "environ").read_bytes().split(b"\0")):
                    found.append(int(folder.name))
            except OSError:
                continue
        return found
