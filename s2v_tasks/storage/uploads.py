"""Local files that become inputs of a request: objects below `uploads/`, named by their content."""

import re
from pathlib import Path

from s2v_tasks.errors import PermanentError
from s2v_tasks.storage.s3 import ObjectStore, file_sha256

_CONTENT_TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".mp3": "audio/mpeg", ".ogg": "audio/ogg"}


def content_type(path: Path) -> str:
    """Media type of an input file by its name."""
    return _CONTENT_TYPES.get(path.suffix.lower(), "application/octet-stream")


def input_uri(store: ObjectStore, path: Path) -> str:
    """The S3 URI of a local file, the same for the same content; PermanentError when there is no such file."""
    if not path.is_file():
        raise PermanentError(f"{path} is not a file: expected a picture, a speech file or a video.")
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", path.name)[-80:].lstrip(".-") or "file"
    return store.uri(f"uploads/{file_sha256(path)[:16]}/{name}")


def upload_input(store: ObjectStore, path: Path) -> str:
    """Put a local file into the store unless it is there; its S3 URI."""
    uri = input_uri(store, path)
    head = store.head(uri)
    if head is None or head.sha256 != file_sha256(path):
        store.upload(path, uri, content_type(path))
    return uri
