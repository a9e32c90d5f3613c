"""State of a clip that is stored between processes: solver state of an unfinished rendering, measured takes.

The takes and the number of the kept one are in `clips/<k>/quality.json`.
"""

from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from s2v_tasks.log import get_logger
from s2v_tasks.schemas.manifest import Manifest, PartialClipFacts
from s2v_tasks.schemas.quality import Take, TakeRecord
from s2v_tasks.schemas.steps import RENDER_CLIP
from s2v_tasks.storage.artifacts import MANIFEST_NAME, ArtifactStore, producer
from s2v_tasks.storage.layout import JobLayout
from s2v_tasks.storage.s3 import ObjectStore

# A record has a few kilobytes for each take.
_MAX_RECORD_BYTES = 16 << 20


class PartialClip:
    """The saved state of one clip with one fingerprint. A clip with another fingerprint has another state."""

    def __init__(self, artifacts: ArtifactStore, layout: JobLayout, clip_index: int, fingerprint: str) -> None:
        self._artifacts, self._layout = artifacts, layout
        self._clip_index, self._fingerprint = clip_index, fingerprint

    def find(self) -> Manifest | None:
        """Return the manifest of the newest state with a complete output `state`; None: begin at the first step."""
        return self._artifacts.reusable(self._key(MANIFEST_NAME), self._fingerprint)

    def save(self, path: Path, facts: PartialClipFacts) -> None:
        """Store the state in the file `path`, replacing an earlier one.

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
        self._artifacts.put_manifest(self._key(MANIFEST_NAME), manifest)
        if old and old.outputs["state"].key != state.key:
            store.delete(old.outputs["state"].key)
        get_logger().info(
            "partial_clip_saved", clip_index=self._clip_index, step=facts.solver_step, size_bytes=state.size_bytes
        )

    def drop(self) -> None:
        """Delete the state, its manifest first; do nothing if there is none."""
        manifest = self._artifacts.read_manifest(self._key(MANIFEST_NAME))
        if manifest is None:
            return
        self._artifacts.store.delete(self._key(MANIFEST_NAME))
        self._artifacts.store.delete(manifest.outputs["state"].key)

    def _key(self, name: str) -> str:
        return self._layout.partial_clip(self._clip_index, self._fingerprint, name)


class KeptTake(NamedTuple):
    """The record of a clip and its kept take."""

    record: TakeRecord
    take: Take


class TakeRecords:
    """The records of the clips of one job."""

    def __init__(self, store: ObjectStore, layout: JobLayout) -> None:
        self._store, self._layout = store, layout

    def read(self, clip_index: int) -> TakeRecord | None:
        """Return the record of a clip; None if it has none or one that cannot be parsed."""
        key = self._layout.clip_quality(clip_index)
        data = self._store.find_bytes(key, max_bytes=_MAX_RECORD_BYTES)
        try:
            return None if data is None else TakeRecord.model_validate_json(data)
        except ValidationError as error:
            get_logger().warning("quality_unreadable", key=key, problems=error.error_count())
            return None

    def begin(self, clip_index: int, fingerprint: str) -> TakeRecord:
        """Return the record of a clip whose take 0 has this fingerprint; an empty one if there is no such record."""
        found = self.read(clip_index)
        if found is not None and found.fingerprint == fingerprint:
            return found
        return TakeRecord(clip_index=clip_index, fingerprint=fingerprint)

    def write(self, record: TakeRecord) -> None:
        """Store the record in one request, in place of an earlier one."""
        key = self._layout.clip_quality(record.clip_index)
        self._store.put_bytes(key, record.model_dump_json().encode(), "application/json")

    def kept(self, clip: Manifest | None) -> KeptTake | None:
        """Return the record and the kept take that describe this stored clip; None if it was not measured."""
        if clip is None or clip.clip_index is None:
            return None
        record = self.read(clip.clip_index)
        take = record.kept_take if record else None
        if record is None or take is None or take.fingerprint != clip.fingerprint:
            return None
        return KeptTake(record, take)

    def copy(self, source: JobLayout, clip_index: int) -> None:
        """Copy the record of a clip of another job, if it has one."""
        key = source.clip_quality(clip_index)
        if self._store.exists(key):
            self._store.copy(key, self._layout.clip_quality(clip_index))
