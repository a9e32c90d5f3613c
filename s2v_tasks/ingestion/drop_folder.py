"""Find the folders in the drop folder by one listing, and turn the files of a complete folder into a request."""

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import PurePosixPath
from typing import Any, Literal
from unicodedata import normalize

from s2v_tasks.errors import PermanentError
from s2v_tasks.schemas.job import JOB_ID_RULE, is_job_id, job_slug
from s2v_tasks.schemas.request import Request
from s2v_tasks.schemas.request_parsing import decode_text, parse_json, parse_request
from s2v_tasks.storage.objects import ListedObject

MARKER = "request.json"
PROMPT = "prompt.txt"
_VIDEO_SUFFIXES = {".mp4", ".m4v", ".mov", ".webm", ".mkv", ".3gp"}
# Files that `media` can read, by kind. In a folder without an audio file a video is the speech: phones record both.
SUFFIXES = {
    "image": {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp"},
    "audio": {
        ".wav", ".wave", ".bwf", ".w64", ".rf64", ".mp3", ".flac", ".ogg", ".oga", ".opus", ".spx", ".m4a", ".m4b",
        ".aac", ".aif", ".aiff", ".aifc", ".caf", ".amr", ".mka", ".weba",
    },
}  # fmt: skip
_UNFINISHED_SUFFIXES = {
    ".part", ".partial", ".filepart", ".crdownload", ".opdownload", ".download", ".tmp", ".temp", ".upload",
    ".uploading", ".incomplete", ".aria2", ".!ut",
}  # fmt: skip
# Files that operating systems and editors leave: macOS, Windows, Synology, office programs, back-ups. All names that
# begin with a dot are of this kind, except "." and "..": the store refuses them.
_IGNORED = re.compile(
    r"\.(?!\.?\Z).*|thumbs\.db.*|ehthumbs\w*\.db|desktop\.ini|icon\r|__macosx|@eadir|\$recycle\.bin"
    r"|system volume information|~.*|.*~|#.*#|.*\.(bak|orig|swp|swo)",
    re.IGNORECASE | re.DOTALL,
)
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")
MAX_TEXT_BYTES = 64 * 1024  # of request.json and of prompt.txt
MAX_FILES = 1000  # of a folder: each is copied and deleted, while all other folders wait
_KIND_OF_FIELD: dict[str, Literal["image", "audio", "pose"]] = {
    "image_uri": "image",
    "audio_uri": "audio",
    "pose_video_uri": "pose",
}


@dataclass(frozen=True)
class DropFolder:
    """One folder below incoming/: its `files` by name, in order, and the `ignored` files of systems and editors.

    Ignored files are only moved along with the others.
    """

    uri: str
    name: str
    files: dict[str, ListedObject]
    ignored: dict[str, ListedObject]

    @property
    def etag(self) -> str:
        """Return a digest that changes only when a file is added, removed or rewritten with other bytes."""
        digest = hashlib.sha256()
        for name, file in sorted(self.files.items()):
            digest.update(repr((name, file.etag, file.size_bytes)).encode())
        return digest.hexdigest()[:32]

    @property
    def modified_at(self) -> datetime:
        """Return the time at which its last file was written."""
        return max(file.modified_at for file in self.files.values())

    def named(self, kind: Literal["image", "audio", "pose"]) -> list[str]:
        """Return the names of its files of one kind, by their suffix; a pose video is called `pose`."""
        paths = [PurePosixPath(name) for name in self.files]
        videos = [path for path in paths if path.suffix.lower() in _VIDEO_SUFFIXES]
        poses = [path for path in videos if path.stem.lower() == "pose"]
        if kind == "pose":
            return [str(path) for path in poses]
        found = [path for path in paths if path.suffix.lower() in SUFFIXES[kind]]
        if kind == "audio" and not found:
            found = [path for path in videos if path not in poses]
        return [str(path) for path in found]

    @property
    def unfinished(self) -> list[str]:
        """Return the names of its files that are still being uploaded, or whose upload was abandoned."""
        return [
            name
            for name in self.files
            if any(PurePosixPath(part).suffix.lower() in _UNFINISHED_SUFFIXES for part in name.split("/"))
        ]

    def is_ready(self, now: datetime, *, settle_seconds: int, abandoned_seconds: int) -> bool:
        """Return True if the folder is complete.

        The marker is written last. Without it, a folder with all needed files is ready after `settle_seconds` without a
        change. A folder that lacks a file, or has an unfinished upload, is ready after `abandoned_seconds`.
        """
        quiet = now - self.modified_at
        if self.unfinished:
            return quiet >= timedelta(seconds=abandoned_seconds)
        if MARKER in self.files:
            return True
        has_all = bool(self.named("image") and self.named("audio") and PROMPT in self.files)
        return quiet >= timedelta(seconds=settle_seconds if has_all else abandoned_seconds)


def folders(listing: Iterable[ListedObject], incoming_uri: str) -> list[DropFolder]:
    """Return the folders of a listing, oldest first. Objects outside folders, and empty folders, are left out."""
    files: dict[str, dict[str, ListedObject]] = defaultdict(dict)
    ignored: dict[str, dict[str, ListedObject]] = defaultdict(dict)
    for item in listing:
        folder, _, name = item.uri.removeprefix(f"{incoming_uri}/").partition("/")
        if name:
            kind = ignored if is_ignored(name) else files
            kind[folder][name] = item
    found = [DropFolder(f"{incoming_uri}/{name}", name, found, ignored[name]) for name, found in files.items()]
    return sorted(found, key=lambda folder: (folder.modified_at, folder.name))


def is_ignored(name: str) -> bool:
    """Return True if a system or editor made the file or a folder around it, or if it is the object of a folder."""
    return name.endswith("/") or any(_IGNORED.fullmatch(segment) for segment in name.split("/"))


def plain_name(name: str) -> str:
    """Return a name that is valid in paths and URIs of any system; it is unique for each given name."""
    if _PLAIN.fullmatch(name):
        return name
    path = PurePosixPath(name)
    stem = re.sub(r"[^A-Za-z0-9]+", "-", path.stem).strip("-")[:60]
    suffix = path.suffix.lower() if re.fullmatch(r"\.[A-Za-z0-9]{1,5}", path.suffix) else ""
    return f"{stem or 'file'}-{short_digest(name)}{suffix}"


def short_digest(text: str) -> str:
    """Return eight hex digits of a digest, which make a name unique."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]


@dataclass(frozen=True)
class DropTexts:
    """The contents of `request.json` and `prompt.txt`; None for a missing file."""

    marker: bytes | None
    prompt: bytes | None


@dataclass(frozen=True)
class DropRequest:
    """The request of a folder. The folder may set the `job_id`, so that the sender knows it in advance."""

    job_id: str
    request: Request


def request_of_drop(folder: DropFolder, texts: DropTexts, target_uri: str, max_input_bytes: int) -> DropRequest:
    """Return the request of a folder whose files will be at `target_uri`; PermanentError without a valid one.

    A URI field of request.json names a file of the folder, or any S3 object by its full URI. An omitted field means the
    only file of its kind, an omitted prompt the content of prompt.txt.
    """
    if folder.unfinished:
        raise PermanentError(
            f"{', '.join(map(repr, folder.unfinished[:5]))}: an unfinished upload; upload the file again, or delete "
            "the partial file."
        )
    fields = {} if texts.marker is None else _object(texts.marker)
    job_id = fields.pop("job_id", None)
    if job_id is None:
        job_id = default_job_id(folder)
    elif not is_job_id(job_id):
        raise PermanentError(f"{MARKER}: job_id {str(job_id)[:80]!r}: expected {JOB_ID_RULE}.")
    for field, kind in _KIND_OF_FIELD.items():
        name = _file_name(folder, field, kind, fields.get(field))
        if name is None:
            continue
        _check_size(folder, name, max_input_bytes)
        fields[field] = f"{target_uri}/{plain_name(name)}"
    if fields.get("prompt") is None:
        fields["prompt"] = _prompt(texts.prompt)
    return DropRequest(job_id, parse_request({name: value for name, value in fields.items() if value is not None}))


def default_job_id(folder: DropFolder) -> str:
    """Return a readable job id, the same for the same files in the same folder."""
    return f"{job_slug(folder.name) or 'drop'}-{short_digest(f'{folder.uri}@{folder.etag}')}"


def _object(data: bytes) -> dict[str, Any]:
    try:
        parsed = parse_json(data)
    except ValueError as error:
        raise PermanentError(
            f'{MARKER} is not JSON ({error}): expected an object of request fields such as {{"prompt": "..."}}.'
        ) from error
    if not isinstance(parsed, dict):
        raise PermanentError(f"{MARKER} is a JSON {type(parsed).__name__}: expected an object of request fields.")
    return parsed


def _file_name(folder: DropFolder, field: str, kind: Literal["image", "audio", "pose"], given: Any) -> str | None:
    """Return the file of the folder for a field; None if the field means no file or another object."""
    if isinstance(given, str) and not given.startswith("s3://"):
        return _named_file(folder, field, given)
    if given is not None:
        return None
    found = folder.named(kind)
    if len(found) > 1:
        raise PermanentError(
            f"The folder has {len(found)} files that may be its {kind} ({', '.join(map(repr, found[:5]))}): keep only "
            f"one, or name the right one as {field} in {MARKER}."
        )
    if not found and kind != "pose":
        raise PermanentError(
            f"The folder has no {kind} file; there are: {_names(folder)}. Expected a name that ends with "
            f"{', '.join(sorted(SUFFIXES[kind]))}{', or a video with sound' if kind == 'audio' else ''}."
        )
    return found[0] if found else None


def _named_file(folder: DropFolder, field: str, given: str) -> str:
    """Return the file of the folder with the given name, in the Unicode normal form of the store."""
    if given in folder.files:
        return given
    found = [name for name in folder.files if normalize("NFC", name) == normalize("NFC", given)]
    if len(found) == 1:
        return found[0]
    if found:
        raise PermanentError(
            f"{MARKER}: {field} {given[:200]!r} matches {len(found)} files whose names differ only in their Unicode "
            "normal form: keep only one, or rename one."
        )
    if any(name.startswith(f"{given.rstrip('/')}/") for name in folder.files):
        problem = "is a folder, not a file: add the name of the file to it"
    elif is_ignored(given):
        problem = "is ignored, as a hidden, temporary or back-up file: rename it"
    else:
        problem = "is not a file of the folder"
    raise PermanentError(f"{MARKER}: {field} {given[:200]!r} {problem}; there are: {_names(folder)}.")


def _check_size(folder: DropFolder, name: str, max_input_bytes: int) -> None:
    size_bytes = folder.files[name].size_bytes
    if not 0 < size_bytes <= max_input_bytes:
        raise PermanentError(f"{name!r} has {size_bytes} bytes: expected 1 to {max_input_bytes} (S2V_MAX_INPUT_BYTES).")


def _prompt(text: bytes | None) -> str:
    if text is None:
        raise PermanentError(f"There is no prompt: expected the file {PROMPT}, or the field prompt in {MARKER}.")
    try:
        return decode_text(text).strip()
    except ValueError as error:
        raise PermanentError(f"{PROMPT} is {error}; save it as UTF-8.") from error


def _names(folder: DropFolder) -> str:
    names = list(folder.files)
    return ", ".join(map(repr, names[:10])) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
