"""A job that is ready to be rendered, and attempts to render it in processes of their own."""

import json
import os
import select
import subprocess
import sys
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from s2v_tasks.metadata.store import MetadataStore
from s2v_tasks.metadata.tables import Clip
from s2v_tasks.schemas.manifest import Manifest
from s2v_tasks.storage.layout import JobLayout
from s2v_tasks.storage.s3 import ObjectStore

JOB = "worker-test"
_HANGS_AFTER_SECONDS = 300
# The CLI, held in the forward of its third solver step until it gets SIGTERM or may continue.
HELD_CLI = """
import os
import time
from pathlib import Path

from s2v_tasks.cli import main
from s2v_tasks.engine.models.transformer import S2VTransformer
from s2v_tasks.engine.worker import Worker

folder, forward, terminate = Path(__file__).parent, S2VTransformer.forward, Worker._terminate
calls, signals = [], []

def held(*arguments):
    calls.append(1)
    if len(calls) == 3:
        (folder / f"held-{os.environ.get('RANK', '0')}").touch()
        while not signals and not (folder / "go-on").exists():
            time.sleep(0.01)
    return forward(*arguments)

def noted(*arguments):
    signals.append(1)
    terminate(*arguments)

S2VTransformer.forward, Worker._terminate = held, noted
main()
"""


@dataclass
class Site:
    """A store, a database and a job that is ready to be rendered."""

    environment: dict[str, str]
    store: ObjectStore
    metadata: MetadataStore
    folder: Path
    layout: JobLayout
    attempts: list["Attempt"] = field(default_factory=list)

    def start_held(self, *launcher: str, num_ranks: int = 1, save_seconds: float = 120) -> "Attempt":
        """Start an attempt at the first clip; return when all its ranks are held in their third solver step.

        Its state is saved every `save_seconds`.
        """
        folder = self._new_folder()
        saves = f"from s2v_tasks.rendering import saved_states\nsaved_states.SAVE_SECONDS = {save_seconds}\n"
        (folder / "held.py").write_text(saves + HELD_CLI)
        attempt = self._start([*launcher, str(folder / "held.py")], folder, 1)
        while not all((folder / f"held-{rank}").exists() for rank in range(num_ranks)):
            assert attempt.process.poll() is None, attempt.log
            time.sleep(0.02)
        return attempt

    def start(self, *launcher: str, count: int = 1, job_id: str = JOB) -> "Attempt":
        """Start `s2v render-clip` for the first `count` clips of a job in processes of its own."""
        return self._start([*launcher], self._new_folder(), count, job_id)

    def _new_folder(self) -> Path:
        folder = self.folder / uuid.uuid4().hex
        folder.mkdir()
        return folder

    def _start(self, launcher: list[str], folder: Path, count: int, job_id: str = JOB) -> "Attempt":
        arguments = ["render-clip", "--job-id", job_id, "--clip-index", "0", "--count", str(count)]
        with (folder / "stdout").open("wb") as stdout, (folder / "stderr").open("wb") as stderr:
            process = subprocess.Popen(
                [sys.executable, *launcher, *arguments],
                stdout=stdout,
                stderr=stderr,
                env=self.environment | {"STEP_ERROR_FILE": str(folder / "error.json")},
            )
        self.attempts.append(Attempt(process, folder))
        return self.attempts[-1]

    def forget_the_clip(self) -> None:
        """Delete the manifest of the clip, so that the clip counts as not rendered."""
        self.store.delete(self.layout.clip_manifest(0))

    def manifest(self) -> Manifest:
        return Manifest.model_validate_json(self.store.get_bytes(self.layout.clip_manifest(0)))

    def partial_keys(self) -> list[str]:
        """Return the keys of the artifacts that lie beside the outputs of the clip."""
        folder = self.layout.partial_clip(0, str(self.clip().fingerprint), "")
        return sorted(item.uri.rpartition("/")[2] for item in self.store.listing(folder))

    def clip(self) -> Clip:
        job = self.metadata.jobs.get(JOB)
        assert job is not None
        return job.clips[0]


@dataclass
class Attempt:
    """A running `s2v render-clip`."""

    process: subprocess.Popen[bytes]
    folder: Path

    def wait(self) -> int:
        """Return the exit code of the attempt; kill the attempt if it hangs."""
        try:
            return self.process.wait(_HANGS_AFTER_SECONDS)
        finally:
            self.kill()

    def kill(self) -> None:
        """Kill the process that was started, but not its ranks."""
        self.process.kill()
        self.process.wait()

    def go_on(self) -> None:
        """Release the held ranks."""
        (self.folder / "go-on").touch()

    def still_running(self) -> list[int]:
        """Return the processes of the attempt that do not end by themselves."""
        for pid in self.pids():
            with suppress(ProcessLookupError):
                handle = os.pidfd_open(pid)
                select.select([handle], [], [], _HANGS_AFTER_SECONDS)
                os.close(handle)
        return self.pids()

    @property
    def log(self) -> str:
        return (self.folder / "stderr").read_text()

    @property
    def error(self) -> dict[str, Any]:
        return dict(json.loads((self.folder / "error.json").read_text()))

    def pids(self, *marks: str) -> list[int]:
        """Return the processes of the attempt, or those that have the given variables (NAME=value)."""
        wanted = {mark.encode() for mark in (f"STEP_ERROR_FILE={self.folder}/error.json", *marks)}
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if wanted <= set((folder / "environ").read_bytes().split(b"\0")):
                    found.append(int(folder.name))
            except OSError:
                continue
        return found
