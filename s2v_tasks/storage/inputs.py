"""Input files of requests: find objects by name in any Unicode normal form, and upload local files.

macOS writes "é" as two characters (NFD), other systems as one (NFC), and S3 compares bytes.
"""

import re
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice, product
from pathlib import Path
from unicodedata import normalize

from s2v_tasks.errors import ConfigurationError, PermanentError
from s2v_tasks.storage.locations import parse_uri, printable
from s2v_tasks.storage.objects import file_sha256
from s2v_tasks.storage.s3 import ObjectStore

_CONTENT_TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".mp3": "audio/mpeg", ".ogg": "audio/ogg"}
_MAX_SPELLINGS = 64  # each costs a request: six segments of a name with letters beyond ASCII


def find_input(store: ObjectStore, uri: str) -> str | None:
    """Return the URI of the object for `uri` of a request, in the Unicode normal form of the store.

    None when there is none. PermanentError when requests may not name it, when it is a folder, or when two objects
    differ only in their normal form and neither is spelled like `uri`.
    """
    store.access.check_input(parse_uri(uri))
    if _is_there(store, uri):
        return uri
    found = [spelling for spelling in _other_spellings(uri) if _is_there(store, spelling)]
    if len(found) > 1:
        raise PermanentError(
            f"{printable(uri)} matches {len(found)} objects whose names differ only in their Unicode normal form: "
            "delete or rename one."
        )
    if found:
        return found[0]
    if _is_folder(store, uri):
        raise PermanentError(f"{printable(uri)} is a folder, not a file: add the name of the file to it.")
    return None


def same_name(uri: str, other: str) -> bool:
    """Return True if two URIs are equal in the same Unicode normal form."""
    return normalize("NFC", uri) == normalize("NFC", other)


def plain_name(name: str) -> str:
    """Return a file name with plain characters only, at most 80, that does not begin with a dot or a dash."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name)[-80:].lstrip(".-") or "file"


def content_type(path: Path) -> str:
    """Return the media type of an input file by its name."""
    return _CONTENT_TYPES.get(path.suffix.lower(), "application/octet-stream")


def input_uri(store: ObjectStore, path: Path) -> str:
    """Return the S3 URI of a local file, the same for the same content; PermanentError for a missing or empty file."""
    if not path.is_file():
        raise PermanentError(f"{str(path)!r} is not a file: expected a picture, a speech file or a video.")
    if not path.stat().st_size:
        raise PermanentError(f"{str(path)!r} is empty (0 bytes): expected a picture, a speech file or a video.")
    return store.uri(f"uploads/{file_sha256(path)[:16]}/{plain_name(path.name)}")


def upload_input(store: ObjectStore, path: Path) -> str:
    """Upload a local file below `uploads/` unless it exists there; return its S3 URI, which contains its digest."""
    uri = input_uri(store, path)
    head = store.head(uri)
    if head is None or head.sha256 != file_sha256(path):
        store.upload(path, uri, content_type(path))
    return uri


def _other_spellings(uri: str) -> Iterator[str]:
    """Yield the name with each segment in either form: a folder and a file in it can come from different systems."""
    forms = [dict.fromkeys((part, normalize("NFC", part), normalize("NFD", part))) for part in uri.split("/")]
    return (spelling for spelling in map("/".join, islice(product(*forms), _MAX_SPELLINGS)) if spelling != uri)


def _is_there(store: ObjectStore, uri: str) -> bool:
    """Return True if requests may name the object and it exists."""
    # Without permission to list the bucket, S3 answers "forbidden" for a missing object; the download reports that.
    with suppress(PermanentError):
        store.access.check_input(parse_uri(uri))
        return store.exists(uri)
    return False


def _is_folder(store: ObjectStore, uri: str) -> bool:
    """Return True if objects lie below the name; False without permission to list the bucket."""
    with suppress(ConfigurationError):
        return store.has_any(f"{uri}/")
    return False
