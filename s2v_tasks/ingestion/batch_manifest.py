"""Read a batch manifest: JSON lines or CSV, one request per row. All errors of all rows are reported at once."""

import csv
import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from s2v_tasks.errors import PermanentError
from s2v_tasks.schemas.catalogue import Catalogue
from s2v_tasks.schemas.job import job_slug
from s2v_tasks.schemas.request import Request
from s2v_tasks.schemas.request_fields import S3_URI_PATTERN, URI_FIELDS
from s2v_tasks.schemas.request_parsing import decode_text, parse_json, parse_request
from s2v_tasks.storage.locations import printable

MAX_ROWS = 10_000
MAX_LINES = 1_000_000  # with empty ones and those inside quoted cells
MAX_BYTES = 64 * 1024**2
MAX_LINE_CHARACTERS = 64 * 1024  # of JSON lines
MAX_ROW_ID_CHARACTERS = 200
_LABEL_COLUMN = "labels."
# Control characters, line ends and lone surrogates: a terminal interprets them or cannot show them.
_NO_TEXT = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


@dataclass(frozen=True)
class ManifestRow:
    """One row of the file. `line`: number of its first line, from 1, including the heading of a CSV.

    `request` is None if it is invalid. `problems`: all errors of the row itself. `uris`: the files that it names, which
    are not checked here.
    """

    line: int
    row_id: str | None
    request: Request | None
    uris: tuple[str, ...]
    problems: tuple[str, ...]


@dataclass(frozen=True)
class BatchEntry:
    """One valid row."""

    line: int
    row_id: str | None
    request: Request


@dataclass(frozen=True)
class RowError:
    """All errors of one row."""

    line: int
    row_id: str | None
    error: str


def check_rows(rows: Iterable[ManifestRow], refused: Mapping[str, str]) -> tuple[list[BatchEntry], list[RowError]]:
    """Return the valid rows, and the errors of the others. `refused`: the reason for each URI that cannot be used."""
    entries, errors = [], []
    for row in rows:
        problems = [*row.problems, *(refused[uri] for uri in row.uris if uri in refused)]
        if problems or row.request is None:
            errors.append(RowError(row.line, row.row_id, " ".join(problems)))
        else:
            entries.append(BatchEntry(row.line, row.row_id, row.request))
    return entries, errors


def read_manifest(data: bytes, manifest_uri: str, catalogue: Catalogue) -> list[ManifestRow]:
    """Return the rows of a manifest, each with all its errors.

    A row has the fields of a request and, optionally, an `id`. A file name without `s3://` is relative to the folder of
    the manifest. In a CSV an empty cell is an omitted field, and `labels.team` is the label `team`. PermanentError if
    the file is not a manifest.
    """
    if _NO_TEXT.search(manifest_uri):
        raise PermanentError(f"{printable(manifest_uri)} has a control character in its name: rename it.")
    folder_uri = manifest_uri.rpartition("/")[0]
    rows: list[ManifestRow] = []
    line_of_id: dict[str, int] = {}
    for line, fields in _rows(data, manifest_uri):
        if len(rows) == MAX_ROWS:
            raise PermanentError(f"{manifest_uri} has more than {MAX_ROWS} rows: divide it.")
        if isinstance(fields, str):
            rows.append(ManifestRow(line, None, None, (), (fields,)))
        else:
            rows.append(_row(line, fields, folder_uri, catalogue, line_of_id))
    if not rows:
        raise PermanentError(f"{manifest_uri} has no rows: expected one request per row.")
    return rows


def job_ids(manifest_uri: str, entries: list[BatchEntry]) -> list[str]:
    """Return a job id for each row, derived from its content and not from its position in the manifest.

    The same manifest therefore gives the same jobs; a changed row gives a new job. Two equal rows without an `id` are
    two jobs.
    """
    seen: Counter[str] = Counter()
    found = []
    for entry in entries:
        # Without defaults: a field that a later version adds must not change the ids of old rows.
        request = entry.request.model_dump(mode="json", exclude_defaults=True)
        identity = json.dumps([manifest_uri, entry.row_id, request], sort_keys=True)
        seen[identity] += 1
        digest = hashlib.sha256(f"{identity}#{seen[identity]}".encode("utf-8", "surrogatepass")).hexdigest()
        found.append(f"{job_slug(entry.row_id or '') or 'batch'}-{digest[:16]}")
    return found


def _row(
    line: int, cells: dict[str, Any], folder_uri: str, catalogue: Catalogue, line_of_id: dict[str, int]
) -> ManifestRow:
    """Check one row by itself; `line_of_id`: the lines of the ids of earlier rows."""
    fields = {name: value for name, value in cells.items() if value is not None}
    problems: list[str] = []
    row_id = None
    try:
        row_id = _row_id(fields.pop("id", None), line, line_of_id)
    except PermanentError as error:
        problems.append(str(error))
    for name in URI_FIELDS:
        if isinstance(fields.get(name), str) and not fields[name].startswith("s3://"):
            fields[name] = f"{folder_uri}/{fields[name]}"
    request = None
    try:
        request = parse_request(fields)
    except PermanentError as error:
        problems.append(str(error))
    if request is not None:
        problems += catalogue.problems(request.preset, request.adapters or ())
    elif isinstance(fields.get("preset"), str):
        problems += catalogue.problems(fields["preset"])
    named = (str(fields[name]) for name in URI_FIELDS if name in fields)
    uris = tuple(uri for uri in named if re.fullmatch(S3_URI_PATTERN, uri) and not uri.endswith("/"))
    return ManifestRow(line, row_id, request, uris, tuple(problems))


def _rows(data: bytes, manifest_uri: str) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Yield the line of each row, and its fields or an error message."""
    try:
        text = decode_text(data)
    except ValueError as error:
        raise PermanentError(f"{manifest_uri} is {error}; save it as UTF-8.") from error
    if max(text.count("\n"), text.count("\r")) > MAX_LINES:
        raise PermanentError(f"{manifest_uri} has more than {MAX_LINES} lines: remove empty lines, or divide it.")
    if manifest_uri.lower().endswith(".csv"):
        return _csv_rows(text, manifest_uri)
    if manifest_uri.lower().endswith((".jsonl", ".ndjson")):
        return ((number, _json_row(line)) for number, line in enumerate(text.split("\n"), 1) if line.strip())
    raise PermanentError(f"{manifest_uri}: expected a name that ends with .jsonl or .csv.")


def _json_row(line: str) -> dict[str, Any] | str:
    if len(line) > MAX_LINE_CHARACTERS:
        return f"{len(line)} characters: expected at most {MAX_LINE_CHARACTERS} for a request."
    try:
        row = parse_json(line)
    except ValueError as error:
        return f"not JSON ({error}): expected an object of request fields."
    return row if isinstance(row, dict) else f"a JSON {type(row).__name__}: expected an object of request fields."


def _csv_rows(text: str, manifest_uri: str) -> Iterator[tuple[int, dict[str, Any] | str]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    names: list[str] | None = None
    try:
        line = 1
        for cells in reader:
            if cells and names is None:
                names = [cell.strip() for cell in cells]
                _check_heading(names, manifest_uri)
            elif cells and names is not None:
                yield line, _csv_row(names, cells)
            line = reader.line_num + 1
    except csv.Error as error:
        raise PermanentError(f"{manifest_uri} is not CSV after line {reader.line_num} ({error}).") from error


def _check_heading(names: Sequence[str], manifest_uri: str) -> None:
    known = {*Request.model_fields, "id"} - {"labels"}
    unknown = [name for name in names if name not in known and not name.startswith(_LABEL_COLUMN)]
    if unknown and len(names) == 1 and (separator := re.search(r"[;\t|]", names[0])):
        raise PermanentError(
            f"{manifest_uri}: its columns are separated by {separator[0]!r}: expected commas; save it with commas."
        )
    if unknown:
        raise PermanentError(
            f"{manifest_uri}: column {', '.join(map(repr, unknown[:5]))} is not a column of a manifest; expected id, "
            f"the fields of a request, or {_LABEL_COLUMN}<name>."
        )
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        raise PermanentError(f"{manifest_uri}: column {', '.join(map(repr, repeated))} occurs twice: keep one.")


def _csv_row(names: list[str], cells: list[str]) -> dict[str, Any] | str:
    if len(cells) != len(names):
        return (
            f"{len(cells)} cells, the heading has {len(names)}: quote cells that have a comma, a quote or a line break."
        )
    fields: dict[str, Any] = {}
    for name, value in zip(names, cells, strict=True):
        if value == "":
            continue
        if name.startswith(_LABEL_COLUMN):
            fields.setdefault("labels", {})[name.removeprefix(_LABEL_COLUMN)] = value
        else:
            fields[name] = value
    return fields


def _row_id(value: Any, line: int, line_of_id: dict[str, int]) -> str | None:
    """Return the id of a row; PermanentError if it is not a text or is the id of an earlier row."""
    if value is None:
        return None
    row_id = str(value)
    is_text = not isinstance(value, dict | list | bool) and not _NO_TEXT.search(row_id)
    if not is_text or not 0 < len(row_id) <= MAX_ROW_ID_CHARACTERS:
        raise PermanentError(
            f"id {row_id[:80]!r}: expected a text of 1 to {MAX_ROW_ID_CHARACTERS} characters, none a control character."
        )
    if row_id in line_of_id:
        raise PermanentError(f"id {row_id!r} is already used in line {line_of_id[row_id]}: expected each id once.")
    line_of_id[row_id] = line
    return row_id
