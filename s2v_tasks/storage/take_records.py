"""Store the measured takes of a clip and the number of the kept one in `clips/<k>/quality.json`."""

from pydantic import ValidationError

from s2v_tasks.log import get_logger
from s2v_tasks.schemas.manifest import Manifest
from s2v_tasks.schemas.quality import Take, TakeRecord
from s2v_tasks.storage.layout import JobLayout
from s2v_tasks.storage.s3 import ObjectMissingError, ObjectStore

# A record has a few kilobytes for each take.
_MAX_BYTES = 16 << 20


class TakeRecords:
    """The records of the clips of one job."""

    def __init__(self, store: ObjectStore, layout: JobLayout) -> None:
        self._store, self._layout = store, layout

    def read(self, clip_index: int) -> TakeRecord | None:
        """Return the record of a clip; None if it has none or one that cannot be parsed."""
        key = self._layout.clip_quality(clip_index)
        try:
            return TakeRecord.model_validate_json(self._store.get_bytes(key, max_bytes=_MAX_BYTES))
        except ObjectMissingError:
            return None
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

    def kept(self, clip: Manifest | None) -> tuple[TakeRecord, Take] | None:
        """Return the record and the kept take that describe this stored clip; None if it was not measured."""
        if clip is None or clip.clip_index is None:
            return None
        record = self.read(clip.clip_index)
        take = record.kept_take if record else None
        if record is None or take is None or take.fingerprint != clip.fingerprint:
            return None
        return record, take

    def copy(self, source: JobLayout, clip_index: int) -> None:
        """Copy the record of a clip of another job, if it has one."""
        key = source.clip_quality(clip_index)
        if self._store.exists(key):
            self._store.copy(key, self._layout.clip_quality(clip_index))
