"""Read a part of an object as a stream of chunks, for players that ask for ranges of bytes."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from botocore.exceptions import ClientError

from s2v_tasks.storage.s3 import ObjectStore

CHUNK_BYTES = 256 * 1024
# One answer to a request for a range: a player asks for the rest when it needs it.
MAX_RANGE_BYTES = 8 * 1024**2
_RANGE = re.compile(r"bytes=(\d{1,15})-(\d{1,15})?|bytes=-(\d{1,15})")


@dataclass(frozen=True)
class ObjectPart:
    """An answer of the store. `status`: 200 the whole object, 206 a range of it, 304 unchanged, 416 no such range."""

    status: int
    etag: str | None = None
    size_bytes: int = 0
    content_range: str | None = None
    body: Any = None

    def chunks(self) -> Iterator[bytes]:
        """Yield the bytes; the connection to the store is released at the end, also when nobody reads on."""
        try:
            while chunk := self.body.read(CHUNK_BYTES):
                yield chunk
        finally:
            self.body.close()


def open_part(
    store: ObjectStore, address: str, *, byte_range: str | None = None, known_etag: str | None = None
) -> ObjectPart:
    """Return the object, or the part that `byte_range` (the value of a Range header) names, unless it has `known_etag`.

    A range is limited to MAX_RANGE_BYTES; a value that is not one range of bytes is ignored, as HTTP demands.
    ObjectMissingError when the object does not exist.
    """
    options = {}
    if wanted := _bounded(byte_range):
        options["Range"] = wanted
    if known_etag:
        options["IfNoneMatch"] = known_etag
    with store._reading("reading", address) as at:
        try:
            answer = store._client.get_object(Bucket=at.bucket, Key=at.key, **options)
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


def _bounded(byte_range: str | None) -> str | None:
    """Return a range header of at most MAX_RANGE_BYTES; None when the value names no single range."""
    match = _RANGE.fullmatch(byte_range.replace(" ", "")) if byte_range else None
    if match is None:
        return None
    if match[3] is not None:
        return f"bytes=-{min(int(match[3]), MAX_RANGE_BYTES)}"
    start = int(match[1])
    end = int(match[2]) if match[2] else start + MAX_RANGE_BYTES - 1
    return f"bytes={start}-{min(end, start + MAX_RANGE_BYTES - 1)}"
