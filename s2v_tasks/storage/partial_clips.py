"""Save the state of an interrupted clip in the store until the clip is done."""

from datetime import UTC, datetime
from pathlib import Path

from s2v_tasks.log import get_logger
from s2v_tasks.schemas.manifest import Manifest, PartialClipFacts
from s2v_tasks.schemas.steps import RENDER_CLIP
from s2v_tasks.storage.artifacts import MANIFEST_NAME, ArtifactStore, producer
from s2v_tasks.storage.layout import JobLayout


class PartialClip:
    """The saved state of one clip with one fingerprint. A clip with another fingerprint has a state of its own."""

    def __init__(self, artifacts: ArtifactStore, layout: JobLayout, clip_index: int, fingerprint: str) -> None:
        self._artifacts, self._layout = artifacts, layout
        self._clip_index, self._fingerprint = clip_index, fingerprint

    def find(self) -> Manifest | None:
        """Return the manifest of the newest state, whose output `state` is whole; None: begin at the first step."""
        return self._artifacts.reusable(self._key(MANIFEST_NAME), self._fingerprint)

    def save(self, path: Path, facts: PartialClipFacts) -> None:
        """Store the state in the file `path`; in place of an earlier one.

        The manifest is written in one request and the earlier state is deleted last: after a kill at any point one of
        the two is complete.
        """
        old = self._artifacts.read_manifest(self._key(MANIFEST_NAME))
        store, now = self._artifacts.store, datetime.now(UTC)
        state = store.upload(path, self._key(f"state-{facts.solver_step:04d}.safetensors"), "application/octet-stream")
        manifest = Manifest(
            step=RENDER_CLIP.name,
            job_id=self._layout.job_id,
            clip_index=self._clip_index,
            fingerprint=self._fingerprint,
            producer=producer(),
            inputs={},
            outputs={"state": state},
            started_at=now,
            finished_at=datetime.now(UTC),
            facts=facts,
        )
        store.put_bytes(self._key(MANIFEST_NAME), manifest.model_dump_json(indent=2).encode(), "application/json")
        if old and old.outputs["state"].key != state.key:
            store.delete(old.outputs["state"].key)
        get_logger().info(
            "partial_clip_saved", clip_index=self._clip_index, step=facts.solver_step, size_bytes=state.size_bytes
        )

    def drop(self) -> None:
        """Delete the state, its manifest first; do nothing when there is none."""
        manifest = self._artifacts.read_manifest(self._key(MANIFEST_NAME))
        if manifest is None:
            return
        self._artifacts.store.delete(self._key(MANIFEST_NAME))
        self._artifacts.store.delete(manifest.outputs["state"].key)

    def _key(self, name: str) -> str:
        return self._layout.partial_clip(self._clip_index, self._fingerprint, name)
