"""Objects of the store: their metadata, streams of a byte range for players, and files with a bounded size."""

import hashlib
import io
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError

from s2v_tasks.errors import PermanentError
from s2v_tasks.schemas.manifest import Artifact
from s2v_tasks.storage.locations import Location, printable
from s2v_tasks.storage.s3_errors import ObjectDamagedError

CHUNK_BYTES = 256 * 1024
# One answer to a request for a range: a player asks for the rest when it needs it.
MAX_RANGE_BYTES = 8 * 1024**2
_RANGE = re.compile(r"bytes=(\d{1,15})-(\d{1,15})?|bytes=-(\d{1,15})")
_DELETED_AT_ONCE = 1000  # S3's own bound
# Control characters that XML cannot hold, with which a request for many objects is refused as a whole.
_NOT_IN_XML = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")


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


@dataclass(frozen=True)
class ObjectPart:
    """An answer of the store. `status`: 200 the whole object, 206 a range of it, 304 unchanged, 416 no such range."""

    status: int
    etag: str | None = None
    size_bytes: int = 0
    content_range: str | None = None
    body: Any = None

    def chunks(self) -> Iterator[bytes]:
        """Yield the bytes; the connection to the store is released at the end, also if the reader stops early."""
        try:
            while chunk := self.body.read(CHUNK_BYTES):
                yield chunk
        finally:
            self.body.close()


class BoundedFile(io.FileIO):
    """A new file of at most `max_bytes`; PermanentError with the object at `uri` if more are written."""

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


def verify_sha256(path: Path, artifact: Artifact, uri: str) -> None:
    """Raise ObjectDamagedError unless the file, a download of the object at `uri`, has the digest of the artifact."""
    sha256 = file_sha256(path)
    if sha256 != artifact.sha256:
        raise ObjectDamagedError(
            f"{uri} has {path.stat().st_size} bytes with SHA-256 {sha256}: expected "
            f"{artifact.size_bytes} bytes with {artifact.sha256}. Run the step that writes it again."
        )


def open_part(client: Any, at: Location, byte_range: str | None, known_etag: str | None) -> ObjectPart:
    """Return the object, or the part that `byte_range` (the value of a Range header) names, unless it has `known_etag`.

    A range is limited to MAX_RANGE_BYTES; a value that is not one range of bytes is ignored, as HTTP demands.
    """
    options = {}
    if wanted := _bounded(byte_range):
        options["Range"] = wanted
    if known_etag:
        options["IfNoneMatch"] = known_etag
    try:
        answer = client.get_object(Bucket=at.bucket, Key=at.key, **options)
    except ClientError as error:
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        if status in {304, 416}:
            return ObjectPart(status, etag=known_etag if status == 304 else None)
        raise
    return ObjectPart(
        status=206 if answer.get("ContentRange") else 200,
        etag=answer.get("ETag"),
        size_bytes=answer["ContentLength"],
        content_range=answer.get("ContentRange"),
        body=answer["Body"],
    )


def deleted_at_once(buckets: Iterable[list[Location]]) -> Iterator[list[Location]]:
    """Yield groups of objects that one request may delete, all of one bucket.

    An object whose name XML cannot hold is a group of its own.
    """
    for places in buckets:
        yield from ([place] for place in places if _NOT_IN_XML.search(place.key))
        named = [place for place in places if not _NOT_IN_XML.search(place.key)]
        for start in range(0, len(named), _DELETED_AT_ONCE):
            yield named[start : start + _DELETED_AT_ONCE]


def delete_group(client: Any, places: list[Location]) -> list[dict[str, Any]]:
    """Delete the objects of a group of `deleted_at_once` by one request; return the errors of S3."""
    bucket, keys = places[0].bucket, [{"Key": place.key} for place in places]
    if _NOT_IN_XML.search(places[0].key):
        client.delete_object(Bucket=bucket, **keys[0])
        return []
    return list(client.delete_objects(Bucket=bucket, Delete={"Objects": keys, "Quiet": True}).get("Errors", []))


def _bounded(byte_range: str | None) -> str | None:
    """Return a range header of at most MAX_RANGE_BYTES; None if the value is not a single range."""
    match = _RANGE.fullmatch(byte_range.replace(" ", "")) if byte_range else None
    if match is None:
        return None
    if match[3] is not None:
        return f"bytes=-{min(int(match[3]), MAX_RANGE_BYTES)}"
    start = int(match[1])
    end = int(match[2]) if match[2] else start + MAX_RANGE_BYTES - 1
    return f"bytes={start}-{min(end, start + MAX_RANGE_BYTES - 1)}"
