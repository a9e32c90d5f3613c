"""What the store says about objects, and the file that a download fills."""

import hashlib
import io
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from s2v_tasks.errors import PermanentError
from s2v_tasks.storage.trust import shown


@dataclass(frozen=True)
class ObjectHead:
    """Size and `sha256` (hex) of an object; the latter only for objects that this system uploaded."""

    size_bytes: int
    sha256: str | None


@dataclass(frozen=True)
class ListedObject:
    """One object of a listing."""

    uri: str
    size_bytes: int
    modified_at: datetime
    etag: str


@dataclass(frozen=True)
class UnfinishedUpload:
    """An upload in parts that was begun and neither completed nor aborted: its parts are paid for and unreadable."""

    uri: str
    upload_id: str
    started_at: datetime


class BoundedFile(io.FileIO):
    """A new file that takes no more than `max_bytes`; PermanentError, naming the object at `uri`, beyond them."""

    def __init__(self, path: Path, uri: str, max_bytes: int | None) -> None:
        super().__init__(path, "w")
        self._uri, self._max_bytes = uri, max_bytes

    def write(self, data: Any, /) -> int:
        """Write all of `data` at the current position."""
        end = self.tell() + len(data)
        if self._max_bytes is not None and end > self._max_bytes:
            raise too_large(self._uri, end, self._max_bytes)
        rest = memoryview(data)
        while rest:  # a disk that gets full takes a part and says so; only the next write is an error
            rest = rest[super().write(rest) :]
        return len(data)


def too_large(uri: str, size_bytes: int, max_bytes: int) -> PermanentError:
    """The refusal of an object by its size."""
    return PermanentError(
        f"{shown(uri)} has {size_bytes} bytes: expected at most {max_bytes}; make the file smaller or raise the limit "
        "(S2V_MAX_INPUT_BYTES for the files of a request)."
    )


def file_sha256(path: Path) -> str:
    """SHA-256 (hex) of the bytes of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
