"""Find the folders in the drop folder by one listing: their files, and which folders are complete."""

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import PurePosixPath
from typing import Literal

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
            digest.update(repr((name, file.etag, file.size_bytes)).encode("utf-8", "surrogatepass"))
        return digest.hexdigest()[:32]

    @property
    def handed_in_at(self) -> datetime:
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
        quiet = now - self.handed_in_at
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
    return sorted(found, key=lambda folder: (folder.handed_in_at, folder.name))


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
