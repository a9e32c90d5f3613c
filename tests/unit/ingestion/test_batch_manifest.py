"""Check batch manifests: the fields of a row, and the list of all errors."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from s2v_tasks.errors import PermanentError
from s2v_tasks.ingestion import batch_manifest
from s2v_tasks.ingestion.batch_manifest import (
    MAX_BYTES,
    MAX_ROWS,
    BatchEntry,
    RowError,
    check_rows,
    job_ids,
    read_manifest,
)
from s2v_tasks.schemas.catalogue import load_catalogue
from s2v_tasks.schemas.request_fields import MAX_PROMPT_CHARACTERS

CATALOGUE = load_catalogue(Path(__file__).parents[3] / "config")
URI = "s3://bucket/batch/monday.jsonl"
ROW = {"image_uri": "anna.png", "audio_uri": "s3://bucket/voices/a.wav", "prompt": "A person speaks."}


Judged = tuple[list[BatchEntry], list[RowError]]


def read(*rows: Any, uri: str = URI) -> Judged:
    return read_text("\n".join(json.dumps(row) for row in rows), uri)


def read_text(text: str, uri: str, encoding: str = "utf-8") -> Judged:
    return check_rows(read_manifest(text.encode(encoding), uri, CATALOGUE), {})


def test_names_without_a_bucket_lie_beside_the_manifest() -> None:
    """Relative names are resolved beside the manifest, and full URIs do not change."""
    (entry,), errors = read(ROW | {"id": "welcome"})
    assert errors == []
    assert (entry.line, entry.row_id) == (1, "welcome")
    assert entry.request.image_uri == "s3://bucket/batch/anna.png"
    assert entry.request.audio_uri == "s3://bucket/voices/a.wav"


def test_csv_and_json_lines_give_the_same_rows() -> None:
    """In a CSV, empty cells are omitted, numbers converted, labels have columns, and a byte order mark is skipped."""
    heading = "id,image_uri,audio_uri,prompt,num_clip,start_from_ref,labels.team"
    text = f'{heading}\n1,a.png,a.wav,"Hello, you",2,true,\n2,a.png,a.wav,Hi,,,news\n'
    entries, errors = read_text(text, "s3://bucket/b.csv", "utf-8-sig")
    assert errors == []
    first, second = (entry.request for entry in entries)
    assert (first.prompt, first.num_clip, first.start_from_ref, first.labels) == ("Hello, you", 2, True, {})
    assert (second.num_clip, second.start_from_ref, second.labels) == (None, False, {"team": "news"})


def test_all_errors_are_found_row_by_row() -> None:
    """Each wrong row has its sentence, and the right rows are kept."""
    text = "\n".join([
        json.dumps(ROW | {"id": "a"}),
        "{",
        json.dumps([1]),
        json.dumps(ROW | {"id": "a"}),
        json.dumps(ROW | {"preset": "fast"}),
        json.dumps(ROW | {"infer_frames": 50, "id": "f"}),
        json.dumps({"prompt": "x"}),
        json.dumps(ROW | {"id": ["x"]}),
        json.dumps(ROW),
    ])
    entries, errors = read_text(text, URI)
    assert [entry.line for entry in entries] == [1, 9]
    assert [error.line for error in errors] == [2, 3, 4, 5, 6, 7, 8]
    words = [
        "not JSON",
        "JSON list",
        "id 'a' is already used in line 1",
        "fast",
        "infer_frames 50",
        "image_uri is missing",
    ]
    assert [word in error.error for word, error in zip(words, errors, strict=False)] == [True] * 6
    assert errors[4].row_id == "f"


@pytest.mark.parametrize(
    ("data", "name", "sentence"),
    [
        (b"", "b.jsonl", "has no rows"),
        (b"\xff", "b.jsonl", "is not UTF-8"),
        (b"{}", "b.txt", "expected a name that ends with .jsonl or .csv"),
        (b"{}\n" * 10_001, "b.jsonl", "more than 10000 rows"),
        (b"image,audio_uri\n1,2\n", "b.csv", "column 'image'"),
        (b'prompt\n"x\n', "b.csv", "is not CSV"),
        (b'prompt,"x\n', "b.csv", "is not CSV"),
        (b"prompt,id,prompt\nx,1,y\n", "b.csv", "column 'prompt' occurs twice"),
        (b"labels.a,prompt,labels.a \nx,1,y\n", "b.csv", "column 'labels.a' occurs twice"),
        (b"prompt;id\nx;1\n", "b.csv", "columns are separated by ';': expected commas"),
        ("prompt\tid\nx\t1\n".encode("utf-16"), "b.csv", "columns are separated by"),
        (b"\n\n", "b.csv", "has no rows"),
    ],
)
def test_a_file_that_is_no_manifest_is_refused(data: bytes, name: str, sentence: str) -> None:
    """The message names the manifest."""
    with pytest.raises(PermanentError, match=sentence) as refused:
        read_manifest(data, f"s3://bucket/{name}", CATALOGUE)
    assert name in str(refused.value)


def test_a_manifest_whose_name_has_control_characters_is_refused() -> None:
    """The message shows the name escaped, so that it changes no terminal and begins no line of a log."""
    with pytest.raises(PermanentError, match=r"s3://bucket/\\x1b\[2J\\r.jsonl has a control character"):
        read_manifest(b"", "s3://bucket/\x1b[2J\r.jsonl", CATALOGUE)


@pytest.mark.parametrize("row_id", ["", "a" * 201, "\0", "\x1b[2J", "two\nlines", "\ud800"])
def test_an_id_is_text_that_can_be_printed(row_id: str) -> None:
    """Control characters are refused in an id; other alphabets, emoji and no-break spaces are accepted."""
    entries, (error,) = read(ROW | {"id": row_id}, ROW | {"id": "Ünfug\u00a0👩\u200d🎤"})
    assert [entry.line for entry in entries] == [2]
    assert "expected a text of 1 to 200 characters" in error.error
    assert error.error.isprintable()


def test_a_csv_row_with_too_many_cells_is_wrong() -> None:
    """A row with an unquoted comma is an error."""
    _, errors = read_text("prompt,image_uri\nHello, you,a.png\nHello\n", "s3://bucket/b.csv")
    assert [error.error.partition(":")[0] for error in errors] == [
        "3 cells, the heading has 2",
        "1 cells, the heading has 2",
    ]


def test_rows_are_named_by_their_lines_in_an_editor() -> None:
    """Line numbers count the heading and empty lines; a row of several lines has the number of its first line."""
    text = '\nid,prompt\n\na,"one\n\ntwo"\nb,x\r\n\nc,y'
    _, errors = read_text(text, "s3://bucket/b.csv")
    assert [(error.line, error.row_id) for error in errors] == [(4, "a"), (7, "b"), (9, "c")]
    _, errors = read_text('\n{"id": "a"}\n \n\n{"id": "b"}\n', URI)
    assert [(error.line, error.row_id) for error in errors] == [(2, "a"), (5, "b")]


def test_a_preset_that_is_no_text_is_one_error() -> None:
    """The type of a preset is refused once; it is not looked up."""
    (row,) = read_manifest(json.dumps(ROW | {"preset": ["fast"]}).encode(), URI, CATALOGUE)
    assert [problem.count("preset") > 0 for problem in row.problems] == [True]


def test_an_adapter_that_is_not_configured_is_an_error_of_its_row() -> None:
    """An unknown adapter is refused before any job starts, beside an unknown preset."""
    fields = {"preset": "fast", "adapters": [{"name": "cinema"}, {"name": "voice"}]}
    (row,) = read_manifest(json.dumps(ROW | fields).encode(), URI, CATALOGUE)
    assert [problem.split(" is ")[0] for problem in row.problems] == [
        "preset 'fast'",
        "adapter 'cinema'",
        "adapter 'voice'",
    ]


def test_all_errors_of_a_row_are_listed() -> None:
    """All errors of id, fields, preset and files of a row are listed."""
    wrong = ROW | {"id": "a", "infer_frames": 50, "num_clip": True, "preset": "fast", "pose_video_uri": "poses/"}
    rows = read_manifest("\n".join(map(json.dumps, [ROW | {"id": "a"}, wrong])).encode(), URI, CATALOGUE)
    assert rows[1].uris == ("s3://bucket/batch/anna.png", "s3://bucket/voices/a.wav")
    entries, (error,) = check_rows(
        rows[1:], {"s3://bucket/voices/a.wav": "It is gone.", "s3://other/b.wav": "Not asked."}
    )
    assert entries == []
    for words in ("used in line 1", "infer_frames 50", "num_clip True", "'fast' is unknown", "a folder", "It is gone."):
        assert error.error.count(words) == 1
    assert "Not asked." not in error.error
    entries, errors = check_rows(rows[:1], {"s3://bucket/batch/anna.png": "It is gone."})
    assert (entries, errors[0].error) == ([], "It is gone.")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le"])
def test_a_manifest_may_have_any_encoding_of_unicode(encoding: str) -> None:
    """UTF-8 with a byte order mark and UTF-16 are read; blanks around names in the heading are removed."""
    (entry,), errors = read_text("image_uri, audio_uri ,prompt\nß.png,a.wav,Grüße\n", "s3://bucket/b.csv", encoding)
    assert errors == []
    assert (entry.request.image_uri, entry.request.prompt) == ("s3://bucket/ß.png", "Grüße")
    (entry,), _ = read_text(json.dumps(ROW), URI, encoding)
    assert entry.request.prompt == "A person speaks."


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"prompt": "a", "prompt": "b"}', "the key 'prompt' is given more than once"),
        ('{"labels": {"a": "b", "a": "c"}}', "the key 'a' is given more than once"),
        ('{"num_clip": NaN}', "NaN is not a number"),
        ('{"num_clip": 1e999}', "too large"),
        ('{"a": ' + "[" * 5000 + "]" * 5000 + "}", "nested too deeply"),
    ],
)
def test_a_row_is_strict_json(text: str, words: str) -> None:
    """Ambiguous JSON is an error of its row alone."""
    entries, (error,) = read_text(f"{json.dumps(ROW)}\n{text}", URI)
    assert ([entry.line for entry in entries], error.line) == ([1], 2)
    assert words in error.error


def test_a_line_that_is_longer_than_a_request_is_not_parsed() -> None:
    """A long line is an error of its row, because millions of values need gigabytes of memory."""
    entries, (error,) = read_text(f'{json.dumps(ROW)}\n{{"labels": [{"[]," * 30_000}[]]}}', URI)
    assert ([entry.line for entry in entries], error.line) == ([1], 2)
    assert "characters: expected at most 65536" in error.error


def test_job_ids_come_from_the_fields_of_a_row() -> None:
    """The order of fields does not matter; equal rows have different ids; a change gives only that row another job."""
    rows = [ROW | {"id": "a"}, ROW | {"id": "b"}, ROW, ROW]
    first = job_ids(URI, read(*rows)[0])
    assert len(set(first)) == 4
    assert first[0].startswith("a-")
    assert sorted(job_ids(URI, read(*reversed(rows))[0])) == sorted(first)
    changed = job_ids(URI, read(rows[0] | {"prompt": "Other."}, *rows[1:])[0])
    assert changed[0] != first[0]
    assert changed[1:] == first[1:]
    assert not set(job_ids("s3://bucket/other.jsonl", read(*rows)[0])) & set(first)


def test_job_ids_of_rows_do_not_change() -> None:
    """A manifest has the same job ids as with earlier versions, so that no job is rendered again."""
    entries, _ = read(ROW | {"id": "Welcome 1"}, ROW, ROW | {"num_clip": 2, "preset": "quick"}, ROW)
    assert job_ids(URI, entries) == [
        "welcome-1-dac521f71099ecb8", "batch-5ab85d0cde4242e0", "batch-6cba8ba8be10da14", "batch-e9db530a04f5b76a"
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["b.CSV", "b.csv", "b.JSONL", "b.ndjson", "b.NDJSON"])
def test_the_suffix_of_a_name_gives_the_format(name: str) -> None:
    """The suffix of a name gives the format, in either case, with two suffixes for JSON lines."""
    text = "image_uri,audio_uri,prompt\na.png,a.wav,Hi\n" if name.lower().endswith("csv") else json.dumps(ROW)
    (entry,), errors = read_text(text, f"s3://bucket/{name}")
    assert (entry.row_id, errors) == (None, [])


def test_an_empty_field_of_a_row_is_one_that_is_left_out() -> None:
    """A null field is the same as an omitted one, also for the job id."""
    empty = ROW | dict.fromkeys(["id", "preset", "priority", "num_clip", "pose_video_uri", "labels"])
    (entry,), errors = read(empty)
    assert errors == []
    assert job_ids(URI, [entry]) == job_ids(URI, read(ROW)[0])
    (plain,) = read_manifest(json.dumps(empty).encode(), URI, CATALOGUE)
    assert plain.uris == ("s3://bucket/batch/anna.png", "s3://bucket/voices/a.wav")


@pytest.mark.parametrize("row_id", [True, False, {}, ["x"]])
def test_an_id_is_a_text_or_a_number(row_id: Any) -> None:
    """Texts and numbers are ids; other values are errors."""
    _, (error,) = read(ROW | {"id": row_id})
    assert error.error.startswith(f"id {str(row_id)!r}: expected a text of 1 to 200 characters")
    (entry,), _ = read(ROW | {"id": 17})
    assert entry.row_id == "17"


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_another_separator_of_a_csv_is_named(separator: str) -> None:
    """A CSV with semicolons is refused with the expected separator."""
    with pytest.raises(PermanentError, match=re.escape(f"separated by {separator!r}: expected commas")):
        read_text(f"prompt{separator}id\nx{separator}1\n", "s3://bucket/b.csv")


def test_labels_have_columns_of_their_own() -> None:
    """A column `labels` without a name of a label is an error."""
    with pytest.raises(PermanentError, match=r"column 'labels' is not a column.*; .* or labels\.<name>"):
        read_text("prompt,labels\nx,y\n", "s3://bucket/b.csv")


def test_the_largest_manifest_fits_the_bound() -> None:
    """The largest number of rows, each with the longest prompt and long names, is below the limit on bytes."""
    assert MAX_ROWS * (MAX_PROMPT_CHARACTERS + 1000) <= MAX_BYTES <= 100e6


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n"])
@pytest.mark.parametrize("name", ["b.csv", "b.jsonl"])
def test_a_manifest_has_a_bound_of_lines(name: str, end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty lines count, because a list of millions of them takes much memory."""
    monkeypatch.setattr(batch_manifest, "MAX_LINES", 5)
    with pytest.raises(PermanentError, match=r"more than 5 lines: remove empty lines"):
        read_text(6 * end, f"s3://bucket/{name}")
    with pytest.raises(PermanentError, match="has no rows"):
        read_text(5 * end, f"s3://bucket/{name}")
