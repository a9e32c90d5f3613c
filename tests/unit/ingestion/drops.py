"""Dropped folders as a listing shows them."""

import json
from datetime import UTC, datetime
from typing import Any

from s2v_tasks.ingestion.drop_folder import (
    DropFolder,
    DropRequest,
    DropTexts,
    folders,
    request_of_drop,
)
from s2v_tasks.storage.objects import ListedObject

INCOMING = "s3://bucket/drop/incoming"


WRITTEN = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)


def listed(name: str, *, size_bytes: int = 10, etag: str = "e1") -> ListedObject:
    return ListedObject(f"{INCOMING}/{name}", size_bytes, WRITTEN, etag)


def folder(*names: str, name: str = "anna") -> DropFolder:
    (found,) = folders([listed(f"{name}/{file}") for file in names], INCOMING)
    return found


def request_of(dropped: DropFolder, marker: Any = None, prompt: bytes | None = b"A person speaks.\n") -> DropRequest:
    data = marker if isinstance(marker, bytes | None) else json.dumps(marker).encode()
    return request_of_drop(dropped, DropTexts(data, prompt), "s3://bucket/drop/accepted/anna", max_input_bytes=1000)
