"""Check every object name before it is sent to the store, by the permissions of this installation.

Names come from users. They are compared segment by segment. A name with a `.`, `..` or empty segment or a backslash is
refused, because the file system of an S3 server may resolve it to another object.
"""

import re
from dataclasses import dataclass
from typing import NamedTuple

from s2v_tasks.errors import ConfigurationError, PermanentError
from s2v_tasks.settings import Settings
from s2v_tasks.storage.layout import drop_folder_uri

MAX_KEY_BYTES = 1024  # S3's own bound
_URI = re.compile(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:/(.*))?", re.DOTALL)


class Location(NamedTuple):
    """A bucket and a key in it, or a prefix; an empty key means the whole bucket."""

    bucket: str
    key: str

    @property
    def uri(self) -> str:
        return f"s3://{self.bucket}/{self.key}" if self.key else f"s3://{self.bucket}"

    def holds(self, other: "Location") -> bool:
        """Return True if `other` is this location or below it."""
        below = not self.key or other.key == self.key or other.key.startswith(self.key + "/")
        return other.bucket == self.bucket and below


@dataclass(frozen=True)
class AccessPolicy:
    """`own`: locations that this installation reads and writes. `inputs`: read-only locations for requests."""

    own: tuple[Location, ...]
    inputs: tuple[Location, ...]

    @classmethod
    def from_settings(cls, settings: Settings) -> "AccessPolicy":
        """Return the policy of the settings: requests may name jobs, drops and the allowed locations."""
        data = parse_setting("S2V_DATA_URI", settings.data_uri)
        output = parse_setting("S2V_OUTPUT_URI", settings.output_uri)
        drops = parse_setting("S2V_DROP_URI", drop_folder_uri(settings))
        allowed = [uri.strip() for uri in settings.allowed_input_uris.split(",") if uri.strip()]
        others = tuple(parse_setting("S2V_ALLOWED_INPUT_URIS", uri) for uri in allowed)
        return cls(own=(data, output, drops), inputs=(data, drops, *others))

    def check_read(self, at: Location) -> None:
        """Raise PermanentError unless the location is one of `own` or `inputs`."""
        _check(at, (*self.own, *self.inputs), "read", "allow it in S2V_ALLOWED_INPUT_URIS")

    def check_input(self, at: Location) -> None:
        """Raise PermanentError unless a request may name the location."""
        _check(
            at, self.inputs, "read for a request", "put the file there, or allow its place in S2V_ALLOWED_INPUT_URIS"
        )

    def check_write(self, at: Location) -> None:
        """Raise PermanentError unless the location is one of `own`."""
        _check(at, self.own, "written", "only S2V_DATA_URI, S2V_OUTPUT_URI and S2V_DROP_URI take objects")


def parse_setting(setting: str, uri: str) -> Location:
    """Return the location that a setting names; ConfigurationError if it is not an S3 URI."""
    match = _URI.fullmatch(uri.rstrip("/"))
    found = Location(match[1], match[2] or "") if match else None
    if found is None or (found.key and _problem(found.key)):
        raise ConfigurationError(f"{setting} {printable(uri)!r}: expected s3://bucket or s3://bucket/prefix.")
    return found


def parse_uri(uri: str) -> Location:
    """Return the location of an `s3://` URI; PermanentError if it is not an S3 URI."""
    match = _URI.fullmatch(uri)
    if not match:
        raise PermanentError(f"{printable(uri)} is not an S3 address: expected s3://bucket/folder/file.")
    return Location(match[1], match[2] or "")


def printable(name: str) -> str:
    """Escape a name for a message or a log line: it cannot begin a new line or hide other text."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in name)


def _check(at: Location, allowed: tuple[Location, ...], verb: str, remedy: str) -> None:
    if problem := _problem(at.key):
        raise PermanentError(f"{printable(at.uri)} is refused: {problem}; rename the object.")
    if not any(one.holds(at) for one in allowed):
        places = ", ".join(dict.fromkeys(one.uri for one in allowed))
        raise PermanentError(f"{printable(at.uri)} may not be {verb}: expected an object below {places}; {remedy}.")


def _problem(key: str) -> str | None:
    """Return the reason to refuse the key, None if it is valid. A trailing slash is valid: it marks a folder."""
    segments = key.removesuffix("/").split("/")
    if key and any(segment in {"", ".", ".."} for segment in segments):
        return "its name has an empty, '.' or '..' segment, which some stores resolve to another object"
    if "\\" in key:
        return "its name has a backslash, which some stores take for a slash"
    if "\0" in key or any("\ud800" <= c <= "\udfff" for c in key):
        return "its name is not text"
    if len(key.encode()) > MAX_KEY_BYTES:
        return f"its name has more than {MAX_KEY_BYTES} bytes"
    return None
