"""Make for S3: a step's outputs are reused when its fingerprint is the same and they are whole, else written anew.

Order is everything. The old manifest goes before the first new output is written and the new one comes after the
last, so a kill at any point leaves either a manifest that tells the truth or none.
"""

import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

import s2v_tasks
from s2v_tasks.errors import PermanentError, TransientError
from s2v_tasks.log import get_logger
from s2v_tasks.schemas.manifest import Artifact, Manifest, Producer
from s2v_tasks.storage.kept_outputs import Built as Built
from s2v_tasks.storage.kept_outputs import KeptOutputs
from s2v_tasks.storage.kept_outputs import OutputFile as OutputFile
from s2v_tasks.storage.layout import JobLayout
from s2v_tasks.storage.s3 import ObjectDamagedError, ObjectHead, ObjectMissingError, ObjectStore
from s2v_tasks.storage.s3 import file_sha256 as file_sha256

MANIFEST_NAME = "manifest.json"


@dataclass(frozen=True)
class _Work:
    """A piece of work: what it is, what it reads, and where its manifest goes."""

    step: str
    job_id: str
    manifest_key: str
    fingerprint: str
    inputs: dict[str, Artifact]
    clip_index: int | None = None
    elsewhere: Sequence[str] = ()


class Produced(NamedTuple):
    """The manifest of a piece of work, and whether it was there already, in the store or kept on the local disk."""

    manifest: Manifest
    reused: bool


Build = Callable[[Path], Built]


class ArtifactStore:
    """Manifests and the objects they vouch for."""

    def __init__(self, store: ObjectStore, work_dir: Path | None = None) -> None:
        self.store = store
        self.kept = KeptOutputs(work_dir)
        self._work_dir = work_dir

    def produce(
        self,
        *,
        step: str,
        job_id: str,
        manifest_key: str,
        fingerprint: str,
        inputs: dict[str, Artifact],
        build: Build,
        clip_index: int | None = None,
        elsewhere: Sequence[str] = (),
        begin: Callable[[], None] = lambda: None,
    ) -> Produced:
        """Reuse the outputs of a piece of work, else let `build` make them in a scratch folder and store them.

        Outputs that cannot be stored are kept on the local disk, where the next attempt finds them.

        inputs: what the outputs are made from, for the manifest; what decides about reuse is `fingerprint` alone.
        clip_index: set for the work of one clip; a clip that gives way to another is kept, and put back on demand.
        elsewhere: manifests of other jobs where the same work may be done; its outputs are copied.
        begin: called before something is written.
        """
        work = _Work(step, job_id, manifest_key, fingerprint, inputs, clip_index, elsewhere)
        if manifest := self._find(work):
            get_logger().info("reused", step=step, manifest_key=manifest_key)
            return Produced(manifest, reused=True)
        started_at = datetime.now(UTC)
        if self._work_dir:
            self._work_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f"s2v-{step}-", dir=self._work_dir) as folder:
            begin()
            kept = self.kept.take(job_id, fingerprint, Path(folder))
            built = kept or build(Path(folder))
            try:
                manifest = self._write(work, built, started_at)
            except BaseException:
                self.kept.put(job_id, fingerprint, built)
                raise
            return Produced(manifest, reused=kept is not None)

    def _find(self, work: _Work) -> Manifest | None:
        """The manifest of `work` if it is done and whole, here or elsewhere. A clip that was superseded is put back."""
        current = self.read_manifest(work.manifest_key)
        if current and current.fingerprint == work.fingerprint:
            # Not put back when lost: what was kept may be what was found damaged after it had been put back.
            if self._is_whole(current):
                return current
        elif work.clip_index is not None:
            return self._restore(work, work.clip_index)
        for key in work.elsewhere:
            if source := self.reusable(key, work.fingerprint):
                return self.adopt(source, work.job_id, work.manifest_key)
        return None

    def _write(self, work: _Work, built: Built, started_at: datetime) -> Manifest:
        """Store what was built, the manifest last; a clip with another fingerprint is kept aside first."""
        self._retire(work)
        outputs = {
            name: self.store.upload(file.path, file.key, file.content_type) for name, file in built.outputs.items()
        }
        manifest = Manifest(
            step=work.step,
            job_id=work.job_id,
            clip_index=work.clip_index,
            fingerprint=work.fingerprint,
            producer=producer(),
            inputs=work.inputs,
            outputs=outputs,
            started_at=started_at,
            finished_at=datetime.now(UTC),
            facts=built.facts,
        )
        self._put_manifest(work.manifest_key, manifest)
        return manifest

    def adopt(self, source: Manifest, job_id: str, manifest_key: str) -> Manifest:
        """Make artifacts of another job `job_id`'s own, by copies beside `manifest_key`; what is there is kept.

        The facts of the new manifest name the job that made them, `source_job_id`. PermanentError when they are not
        whole any more.
        """
        if own := self.reusable(manifest_key, source.fingerprint):
            return own
        if not self._is_whole(source):
            raise PermanentError(
                f"Outputs of {source.step} of job {source.job_id} are lost or changed: they cannot be reused. "
                "Run that job again first."
            )
        self._retire(_Work(source.step, job_id, manifest_key, source.fingerprint, source.inputs, source.clip_index))
        adopted = source.model_copy(update={"job_id": job_id, "facts": source.facts.made_by(source.job_id)})
        return self._copy_beside(adopted, manifest_key.removesuffix(MANIFEST_NAME))

    def reusable(self, manifest_key: str, fingerprint: str) -> Manifest | None:
        """The manifest at `manifest_key` if it has this fingerprint and every output is there, of the same bytes."""
        manifest = self.read_manifest(manifest_key)
        if manifest and manifest.fingerprint == fingerprint and self._is_whole(manifest):
            return manifest
        return None

    def read_manifest(self, manifest_key: str) -> Manifest | None:
        """The manifest at `manifest_key`; None when there is none that can be read."""
        try:
            return Manifest.model_validate_json(self.store.get_bytes(manifest_key))
        except ObjectMissingError:
            return None
        except ValidationError as error:
            get_logger().warning("manifest_unreadable", manifest_key=manifest_key, problems=error.error_count())
            return None

    def fetch(self, artifact: Artifact, path: Path) -> Path:
        """Download an artifact to `path` and verify its bytes; TransientError when they are lost or damaged.

        A damaged object that passes for whole is deleted, so that the step that makes it does not reuse it.
        """
        try:
            return self.store.download(artifact, path)
        except ObjectMissingError as error:
            raise TransientError(f"{error} Run the step that writes it again.") from error
        except ObjectDamagedError:
            if self._is_there(artifact):
                self.store.delete(artifact.key)
                get_logger().warning("damaged_object_deleted", key=artifact.key)
            raise

    def _is_there(self, artifact: Artifact) -> bool:
        """Whether the object says of itself that it has the bytes of `artifact`."""
        return self.store.head(artifact.key) == ObjectHead(artifact.size_bytes, artifact.sha256)

    def _is_whole(self, manifest: Manifest) -> bool:
        for artifact in manifest.outputs.values():
            if not self._is_there(artifact):
                get_logger().warning("output_lost", key=artifact.key, step=manifest.step)
                return False
        return True

    def _put_manifest(self, key: str, manifest: Manifest) -> None:
        self.store.put_bytes(key, manifest.model_dump_json(indent=2).encode(), "application/json")

    def _retire(self, work: _Work) -> None:
        """Remove the manifest that stands in the way; keep a whole clip under its superseded keys."""
        old = self.read_manifest(work.manifest_key)
        if old and old.clip_index is not None and old.fingerprint != work.fingerprint and self._is_whole(old):
            folder = JobLayout(old.job_id).superseded_clip(old.clip_index, old.fingerprint, "")
            self._copy_beside(old, folder)
            get_logger().info("clip_superseded", clip_index=old.clip_index, fingerprint=old.fingerprint)
        self.store.delete(work.manifest_key)

    def _restore(self, work: _Work, clip_index: int) -> Manifest | None:
        kept_key = JobLayout(work.job_id).superseded_clip(clip_index, work.fingerprint, MANIFEST_NAME)
        kept = self.reusable(kept_key, work.fingerprint)
        if kept is None:
            return None
        self._retire(work)
        get_logger().info("clip_restored", clip_index=clip_index, fingerprint=work.fingerprint)
        return self._copy_beside(kept, work.manifest_key.removesuffix(MANIFEST_NAME))

    def _copy_beside(self, manifest: Manifest, folder: str) -> Manifest:
        """Copy the outputs into `folder` (a key that ends in /), then a manifest that says so."""
        outputs = {}
        for name, artifact in manifest.outputs.items():
            key = folder + artifact.key.rpartition("/")[2]
            self.store.copy(artifact.key, key)
            outputs[name] = artifact.model_copy(update={"key": key})
        copy = manifest.model_copy(update={"outputs": outputs})
        self._put_manifest(folder + MANIFEST_NAME, copy)
        return copy


@cache
def producer() -> Producer:
    """This program: its version and, in a checkout, its git revision."""
    root = Path(s2v_tasks.__file__).parent.parent
    revision = None
    if (root / ".git").exists():
        try:
            answer = subprocess.run(
                ["git", "-C", str(root), "rev-parse", "HEAD"],  # noqa: S607 - git has no fixed place
                capture_output=True,
                text=True,
                timeout=10,
                check=False,
            )
            revision = answer.stdout.strip() or None
        except (OSError, subprocess.TimeoutExpired) as error:
            get_logger().warning("git_revision_unknown", reason=str(error))
    return Producer(package_version=s2v_tasks.__version__, git_revision=revision)
