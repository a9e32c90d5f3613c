"""Reuse the outputs of a step in S3 if its fingerprint is the same and they are complete, else write them again.

The old manifest is deleted before the first new output is written, and the new manifest is written last. A kill at any
point therefore leaves a manifest of complete outputs, or none.
"""

import subprocess
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
from s2v_tasks.schemas.steps import Step
from s2v_tasks.scratch import scratch_folder
from s2v_tasks.settings import load_settings
from s2v_tasks.storage.kept_outputs import Built as Built
from s2v_tasks.storage.kept_outputs import KeptOutputs
from s2v_tasks.storage.kept_outputs import OutputFile as OutputFile
from s2v_tasks.storage.layout import JobLayout
from s2v_tasks.storage.objects import ObjectHead
from s2v_tasks.storage.s3 import ObjectStore
from s2v_tasks.storage.s3_errors import ObjectDamagedError, ObjectMissingError

MANIFEST_NAME = "manifest.json"


@dataclass(frozen=True)
class Work:
    """A piece of work with outputs in the store.

    inputs: the artifacts from which the outputs are made, for the manifest; only `fingerprint` decides about reuse.
    clip_index: set for the work of one clip. A replaced clip is kept, and restored on demand. elsewhere: manifest keys
    of other jobs that may have done the same work; its outputs are copied.
    """

    step: Step
    job_id: str
    manifest_key: str
    fingerprint: str
    inputs: dict[str, Artifact]
    clip_index: int | None = None
    elsewhere: Sequence[str] = ()


class Produced(NamedTuple):
    """The manifest of a piece of work; `reused` if its outputs existed, in the store or kept on the local disk."""

    manifest: Manifest
    reused: bool


Build = Callable[[Path], Built]


class ArtifactStore:
    """Manifests, and the objects that they list."""

    def __init__(self, store: ObjectStore, work_dir: Path | None = None) -> None:
        self.store = store
        self.kept = KeptOutputs(work_dir)
        self._work_dir = work_dir

    def produce(self, work: Work, build: Build, *, begin: Callable[[], None] = lambda: None) -> Produced:
        """Reuse the outputs of a piece of work, else let `build` make them in a scratch folder and store them.

        `begin` is called before anything is written. Outputs that cannot be stored are kept on the local disk, where
        the next attempt finds them.
        """
        if manifest := self._find(work, begin):
            get_logger().info("reused", step=work.step.name, manifest_key=work.manifest_key)
            return Produced(manifest, reused=True)
        started_at = datetime.now(UTC)
        with scratch_folder(self._work_dir, work.step.name) as folder:
            begin()
            kept = self.kept.take(work.job_id, work.fingerprint, folder)
            built = kept or build(folder)
            try:
                manifest = self._write(work, built, started_at)
            except BaseException:
                self.kept.put(work.job_id, work.fingerprint, built)
                raise
            return Produced(manifest, reused=kept is not None)

    def _find(self, work: Work, begin: Callable[[], None]) -> Manifest | None:
        """Return the manifest of complete outputs, here or elsewhere, else None. A superseded clip is restored.

        `begin` is called before outputs are restored or copied.
        """
        current = self.read_manifest(work.manifest_key)
        if current and current.fingerprint == work.fingerprint:
            # A lost clip is not restored: the kept copy may have been restored before and be damaged.
            if self._is_whole(current):
                return current
        elif work.clip_index is not None:
            return self._restore(work, work.clip_index, begin)
        for key in work.elsewhere:
            if source := self.reusable(key, work.fingerprint):
                return self.adopt(source, work.job_id, work.manifest_key, begin=begin)
        return None

    def _write(self, work: Work, built: Built, started_at: datetime) -> Manifest:
        """Store the outputs, the manifest last; first move a clip with another fingerprint to its superseded keys."""
        self._retire(work.manifest_key, work.fingerprint)
        outputs = {
            name: self.store.upload(file.path, file.key, file.content_type) for name, file in built.outputs.items()
        }
        manifest = Manifest(
            step=work.step.name,
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
        self.put_manifest(work.manifest_key, manifest)
        return manifest

    def adopt(
        self, source: Manifest, job_id: str, manifest_key: str, *, begin: Callable[[], None] = lambda: None
    ) -> Manifest:
        """Copy the artifacts of another job for `job_id` into the folder of `manifest_key`, unless they exist there.

        `begin` is called before anything is written. The facts of the new manifest name the job that made them,
        `source_job_id`. PermanentError if they are no longer complete.
        """
        if own := self.reusable(manifest_key, source.fingerprint):
            return own
        if not self._is_whole(source):
            raise PermanentError(
                f"Outputs of {source.step} of job {source.job_id} are lost or changed: they cannot be reused. "
                "Start the request as a new job without parent_job_id."
            )
        begin()
        self._retire(manifest_key, source.fingerprint)
        adopted = source.model_copy(update={"job_id": job_id, "facts": source.facts.made_by(source.job_id)})
        return self._copy_beside(adopted, manifest_key.removesuffix(MANIFEST_NAME))

    def reusable(self, manifest_key: str, fingerprint: str) -> Manifest | None:
        """Return the manifest at `manifest_key` if it has this fingerprint and all outputs exist with their digests."""
        manifest = self.read_manifest(manifest_key)
        if manifest and manifest.fingerprint == fingerprint and self._is_whole(manifest):
            return manifest
        return None

    def read_manifest(self, manifest_key: str) -> Manifest | None:
        """Return the manifest at `manifest_key`; None when it does not exist or cannot be parsed."""
        data = self.store.find_bytes(manifest_key)
        try:
            return None if data is None else Manifest.model_validate_json(data)
        except ValidationError as error:
            get_logger().warning("manifest_unreadable", manifest_key=manifest_key, problems=error.error_count())
            return None

    def put_manifest(self, key: str, manifest: Manifest) -> None:
        """Store the manifest in one request, in place of an earlier one."""
        self.store.put_bytes(key, manifest.model_dump_json(indent=2).encode(), "application/json")

    def fetch(self, artifact: Artifact, path: Path) -> Path:
        """Download an artifact to `path` and verify its bytes; TransientError when they are lost or damaged.

        A damaged object whose metadata has the right digest is deleted, so that its step does not reuse it.
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
        """Return True if size and digest in the metadata of the object are those of `artifact`.

        An object without the digest is read: a copy of the bucket or the restart of a server may lose metadata.
        """
        head = self.store.head(artifact.key)
        if head == ObjectHead(artifact.size_bytes, None):
            return self._has_bytes(artifact)
        return head == ObjectHead(artifact.size_bytes, artifact.sha256)

    def _has_bytes(self, artifact: Artifact) -> bool:
        get_logger().warning("digest_lost", key=artifact.key)
        with scratch_folder(self._work_dir, "verify") as folder:
            try:
                self.store.download(artifact, folder / "object")
            except (ObjectDamagedError, ObjectMissingError):
                return False
        return True

    def _is_whole(self, manifest: Manifest) -> bool:
        for artifact in manifest.outputs.values():
            if not self._is_there(artifact):
                get_logger().warning("output_lost", key=artifact.key, step=manifest.step)
                return False
        return True

    def _retire(self, manifest_key: str, fingerprint: str) -> None:
        """Delete the old manifest; before that, copy a complete clip to its superseded keys."""
        old = self.read_manifest(manifest_key)
        if old and old.clip_index is not None and old.fingerprint != fingerprint and self._is_whole(old):
            folder = JobLayout(old.job_id).superseded_clip(old.clip_index, old.fingerprint, "")
            self._copy_beside(old, folder)
            get_logger().info("clip_superseded", clip_index=old.clip_index, fingerprint=old.fingerprint)
        self.store.delete(manifest_key)

    def _restore(self, work: Work, clip_index: int, begin: Callable[[], None]) -> Manifest | None:
        kept_key = JobLayout(work.job_id).superseded_clip(clip_index, work.fingerprint, MANIFEST_NAME)
        kept = self.reusable(kept_key, work.fingerprint)
        if kept is None:
            return None
        begin()
        self._retire(work.manifest_key, work.fingerprint)
        get_logger().info("clip_restored", clip_index=clip_index, fingerprint=work.fingerprint)
        return self._copy_beside(kept, work.manifest_key.removesuffix(MANIFEST_NAME))

    def _copy_beside(self, manifest: Manifest, folder: str) -> Manifest:
        """Copy the outputs into `folder` (a key that ends in /), then write a manifest with the new keys.

        TransientError, and no manifest, if an output was replaced while it was copied.
        """
        outputs = {}
        for name, artifact in manifest.outputs.items():
            key = folder + artifact.key.rpartition("/")[2]
            self.store.copy(artifact.key, key)
            outputs[name] = artifact.model_copy(update={"key": key})
        copy = manifest.model_copy(update={"outputs": outputs})
        if not self._is_whole(copy):
            raise TransientError(
                f"Outputs of {manifest.step} were replaced while they were copied to {folder}: expected outputs that "
                "do not change. Another process writes them; run the step again."
            )
        self.put_manifest(folder + MANIFEST_NAME, copy)
        return copy


@cache
def producer() -> Producer:
    """Return version, git revision and image digest of this program, as far as they are known."""
    settings = load_settings()
    return Producer(
        package_version=s2v_tasks.__version__,
        git_revision=settings.git_revision or _revision_of_checkout(),
        image_digest=settings.image_digest,
    )


def _revision_of_checkout() -> str | None:
    """Return the git revision of the folder of this program; None outside a checkout."""
    root = Path(s2v_tasks.__file__).parent.parent
    if not (root / ".git").exists():
        return None
    try:
        answer = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"],  # noqa: S607 - git has no fixed path
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        get_logger().warning("git_revision_unknown", reason=str(error))
        return None
    return answer.stdout.strip() or None
