"""What lies in the drop folder, read from one listing: folders, their files, and which of them are complete."""

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
_KINDS = {
    "image": {".png", ".jpg", ".jpeg", ".webp"},
    "audio": {".wav", ".mp3", ".flac", ".ogg", ".opus", ".m4a", ".aac"},
}
_POSE_SUFFIXES = {".mp4", ".mov", ".webm", ".mkv"}
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")


@dataclass(frozen=True)
class DropFolder:
    """One folder below incoming/; `files` by their names in it, in order."""

    uri: str
    name: str
    files: dict[str, ListedObject]

    @property
    def etag(self) -> str:
        """Changes when a file is added, removed or rewritten with other bytes, and only then."""
        digest = hashlib.sha256()
        for name, file in sorted(self.files.items()):
            digest.update(repr((name, file.etag, file.size_bytes)).encode("utf-8", "surrogatepass"))
        return digest.hexdigest()[:32]

    @property
    def handed_in_at(self) -> datetime:
        """When its last file was written."""
        return max(file.modified_at for file in self.files.values())

    def named(self, kind: Literal["image", "audio", "pose"]) -> list[str]:
        """The names of its files of one kind, told by their ending; a pose video is called `pose`."""
        paths = [PurePosixPath(name) for name in self.files]
        if kind == "pose":
            found = [path for path in paths if path.stem.lower() == "pose" and path.suffix.lower() in _POSE_SUFFIXES]
        else:
            found = [path for path in paths if path.suffix.lower() in _KINDS[kind]]
        return [str(path) for path in found]

    def is_ready(self, now: datetime, *, settle_seconds: int, abandoned_seconds: int) -> bool:
        """Whether nobody writes in it any more.

        The marker is written last. Without it, a folder with all that is needed is ready when it was left alone for
        `settle_seconds`, one that lacks something when it was left alone for `abandoned_seconds`.
        """
        if MARKER in self.files:
            return True
        has_all = bool(self.named("image") and self.named("audio") and PROMPT in self.files)
        return now - self.handed_in_at >= timedelta(seconds=settle_seconds if has_all else abandoned_seconds)


def folders(listing: Iterable[ListedObject], incoming_uri: str) -> list[DropFolder]:
    """The folders of a listing, oldest first. Objects beside the folders, and markers of empty ones, are nobody's."""
    files: dict[str, dict[str, ListedObject]] = defaultdict(dict)
    for item in listing:
        folder, _, name = item.uri.removeprefix(f"{incoming_uri}/").partition("/")
        if name:
            files[folder][name] = item
    found = [DropFolder(f"{incoming_uri}/{name}", name, found) for name, found in files.items()]
    return sorted(found, key=lambda folder: (folder.handed_in_at, folder.name))


def plain_name(name: str) -> str:
    """A name that any system can have in a path or a URI; equal names give equal ones, different ones different."""
    if _PLAIN.fullmatch(name):
        return name
    path = PurePosixPath(name)
    stem = re.sub(r"[^A-Za-z0-9]+", "-", path.stem).strip("-")[:60]
    suffix = path.suffix.lower() if re.fullmatch(r"\.[A-Za-z0-9]{1,5}", path.suffix) else ""
    return f"{stem or 'file'}-{short_digest(name)}{suffix}"


def short_digest(text: str) -> str:
    """Eight hex digits that keep names apart."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]
