"""A batch manifest: JSON lines or CSV, one request per row. Everything that is wrong with it is found at once."""

import csv
import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from s2v_tasks.errors import PermanentError
from s2v_tasks.schemas.preset import Preset, find_preset
from s2v_tasks.schemas.request import Request, parse_request
from s2v_tasks.schemas.strict_json import parse_json

MAX_ROWS = 10_000
MAX_BYTES = 64 * 1024**2
MAX_ROW_ID_CHARACTERS = 200
_LABEL_COLUMN = "labels."
# Control characters, ends of lines, half characters: a terminal obeys them or cannot show them.
_NO_TEXT = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


@dataclass(frozen=True)
class BatchEntry:
    """One row that is right; rows count from 1, a CSV's heading is none."""

    row_number: int
    row_id: str | None
    request: Request


@dataclass(frozen=True)
class RowError:
    """What is wrong with one row."""

    row_number: int
    row_id: str | None
    error: str


def read_manifest(
    data: bytes, manifest_uri: str, presets: dict[str, Preset]
) -> tuple[list[BatchEntry], list[RowError]]:
    """The rows of a manifest that are right, and what is wrong with each of the others.

    A row has the fields of a request and, if it likes, an `id` of its own. A file that is named without `s3://` lies
    beside the manifest. In a CSV an empty cell is a field left out and `labels.team` is the label `team`.
    PermanentError when the manifest is none at all.
    """
    folder_uri = manifest_uri.rpartition("/")[0]
    entries, errors = [], []
    seen: Counter[str] = Counter()
    for row_number, row in enumerate(_rows(data, manifest_uri), 1):
        if row_number > MAX_ROWS:
            raise PermanentError(f"{manifest_uri} has more than {MAX_ROWS} rows: divide it.")
        row_id = None
        try:
            fields = _fields(row)
            row_id = _row_id(fields, seen)
            for name in ("image_uri", "audio_uri", "pose_video_uri"):
                if isinstance(fields.get(name), str) and not fields[name].startswith("s3://"):
                    fields[name] = f"{folder_uri}/{fields[name]}"
            request = parse_request(fields)
            find_preset(presets, request.preset)
        except PermanentError as error:
            errors.append(RowError(row_number, row_id, str(error)))
        else:
            entries.append(BatchEntry(row_number, row_id, request))
    if not entries and not errors:
        raise PermanentError(f"{manifest_uri} has no rows: expected one request per row.")
    return entries, errors


def job_ids(manifest_uri: str, entries: list[BatchEntry]) -> list[str]:
    """A job id for each row, made from what the row asks for, not from where in the manifest it stands.

    A manifest that is handed in again therefore names the same jobs; a row that changed names a new one. The same
    request twice, without an `id` to tell the rows apart, is two jobs.
    """
    seen: Counter[str] = Counter()
    found = []
    for entry in entries:
        # Without defaults: a field that a later version adds must not make all old rows new ones.
        request = entry.request.model_dump(mode="json", exclude_defaults=True)
        identity = json.dumps([manifest_uri, entry.row_id, request], sort_keys=True)
        seen[identity] += 1
        digest = hashlib.sha256(f"{identity}#{seen[identity]}".encode("utf-8", "surrogatepass")).hexdigest()
        slug = re.sub(r"[^a-z0-9]+", "-", (entry.row_id or "batch").lower()).strip("-")[:40].strip("-")
        found.append(f"{slug or 'batch'}-{digest[:16]}")
    return found


def _rows(data: bytes, manifest_uri: str) -> Iterator[dict[str, Any] | PermanentError]:
    """Each row as fields, or why it is none."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise PermanentError(f"{manifest_uri} is not UTF-8 text ({error}): save it as UTF-8.") from error
    if manifest_uri.lower().endswith(".csv"):
        return _csv_rows(text, manifest_uri)
    if manifest_uri.lower().endswith((".jsonl", ".ndjson")):
        return (_json_row(line) for line in text.split("\n") if line.strip())
    raise PermanentError(f"{manifest_uri}: expected a name that ends with .jsonl or .csv.")


def _json_row(line: str) -> dict[str, Any] | PermanentError:
    try:
        row = parse_json(line)
    except ValueError as error:
        return PermanentError(f"not JSON ({error}): expected an object of request fields")
    if not isinstance(row, dict):
        return PermanentError(f"a JSON {type(row).__name__}: expected an object of request fields")
    return row


def _csv_rows(text: str, manifest_uri: str) -> Iterator[dict[str, Any] | PermanentError]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        _check_heading(reader.fieldnames or [], manifest_uri)
        for row in reader:
            yield _csv_row(row)
    except csv.Error as error:
        raise PermanentError(f"{manifest_uri} is not CSV after line {reader.line_num} ({error}).") from error


def _check_heading(names: Sequence[str], manifest_uri: str) -> None:
    known = {*Request.model_fields, "id"} - {"labels"}
    unknown = [name for name in names if name not in known and not name.startswith(_LABEL_COLUMN)]
    if unknown:
        raise PermanentError(
            f"{manifest_uri}: column {', '.join(map(repr, unknown[:5]))} is none of a manifest; expected id, the "
            f"fields of a request, or {_LABEL_COLUMN}<name>."
        )
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        raise PermanentError(f"{manifest_uri}: column {', '.join(map(repr, repeated))} is there twice: keep one.")


def _csv_row(row: dict[Any, Any]) -> dict[str, Any] | PermanentError:
    if None in row or None in row.values():
        return PermanentError("more or fewer cells than the heading: quote cells that have a comma or a line break")
    fields: dict[str, Any] = {}
    for name, value in row.items():
        if value == "":
            continue
        if name.startswith(_LABEL_COLUMN):
            fields.setdefault("labels", {})[name.removeprefix(_LABEL_COLUMN)] = value
        else:
            fields[name] = value
    return fields


def _fields(row: dict[str, Any] | PermanentError) -> dict[str, Any]:
    if isinstance(row, PermanentError):
        raise row
    return {name: value for name, value in row.items() if value is not None}


def _row_id(fields: dict[str, Any], seen: Counter[str]) -> str | None:
    """The id of a row, taken out of its fields."""
    value = fields.pop("id", None)
    if value is None:
        return None
    row_id = str(value)
    is_text = not isinstance(value, dict | list | bool) and not _NO_TEXT.search(row_id)
    if not is_text or not 0 < len(row_id) <= MAX_ROW_ID_CHARACTERS:
        raise PermanentError(
            f"id {row_id[:80]!r}: expected a text of 1 to {MAX_ROW_ID_CHARACTERS} characters, none a control character"
        )
    seen[row_id] += 1
    if seen[row_id] > 1:
        raise PermanentError(f"id {row_id!r} is that of an earlier row: expected each id once")
    return row_id
