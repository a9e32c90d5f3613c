"""Records of objects in the store, and files with a bounded size for downloads."""

import hashlib
import io
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from s2v_tasks.errors import PermanentError
from s2v_tasks.storage.locations import printable


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
    """A multipart upload that was neither completed nor aborted: its parts cost money and are unreadable."""

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
        while rest:  # a full disk accepts a part first; only the next write fails
            rest = rest[super().write(rest) :]
        return len(data)


def too_large(uri: str, size_bytes: int, max_bytes: int) -> PermanentError:
    """Return the error for an object that is larger than `max_bytes`."""
    return PermanentError(
        f"{printable(uri)} has {size_bytes} bytes: expected at most {max_bytes}; make the file smaller or raise the "
        "limit (S2V_MAX_INPUT_BYTES for the files of a request)."
    )


def file_sha256(path: Path) -> str:
    """Return the SHA-256 (hex) of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
