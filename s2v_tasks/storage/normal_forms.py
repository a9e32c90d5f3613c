"""Names in Unicode normal forms: macOS writes "é" as two characters (NFD), others as one (NFC), S3 compares bytes."""

from collections.abc import Iterator
from contextlib import suppress
from itertools import islice, product
from unicodedata import normalize

from s2v_tasks.errors import ConfigurationError, PermanentError
from s2v_tasks.storage.s3 import ObjectStore
from s2v_tasks.storage.trust import locate, shown

_MOST_SPELLINGS = 64  # each costs a request: six segments of a name with letters beyond ASCII


def find_input(store: ObjectStore, uri: str) -> str | None:
    """Return the URI of the object that a request means by `uri`, in the Unicode normal form that the store has.

    None when there is none. PermanentError when requests may not name it, when it is a folder, or when two objects
    differ only in their normal form and neither is spelled like `uri`.
    """
    store.trust.check_input(locate(uri))
    if _is_there(store, uri):
        return uri
    found = [spelling for spelling in _other_spellings(uri) if _is_there(store, spelling)]
    if len(found) > 1:
        raise PermanentError(
            f"{shown(uri)} means {len(found)} objects whose names differ only in their Unicode normal form: delete or "
            "rename one."
        )
    if found:
        return found[0]
    if _is_folder(store, uri):
        raise PermanentError(f"{shown(uri)} is a folder, not a file: add the name of the file to it.")
    return None


def same_name(uri: str, other: str) -> bool:
    """Whether two URIs differ in their Unicode normal form at most."""
    return normalize("NFC", uri) == normalize("NFC", other)


def _other_spellings(uri: str) -> Iterator[str]:
    """Each segment of the name may be in either form: people copy a folder from here and a file from there."""
    forms = [dict.fromkeys((part, normalize("NFC", part), normalize("NFD", part))) for part in uri.split("/")]
    return (spelling for spelling in map("/".join, islice(product(*forms), _MOST_SPELLINGS)) if spelling != uri)


def _is_there(store: ObjectStore, uri: str) -> bool:
    """Whether requests may name the object and it exists."""
    # S3 says "forbidden", not "missing", to those who may not list the bucket; who fetches the object learns that.
    with suppress(PermanentError):
        store.trust.check_input(locate(uri))
        return store.exists(uri)
    return False


def _is_folder(store: ObjectStore, uri: str) -> bool:
    """Whether objects lie below the name. Who may not list the bucket learns that the object is missing."""
    with suppress(ConfigurationError):
        return store.has_any(f"{uri}/")
    return False
