"""Batch manifests: what a row may be, and that all that is wrong is found at once."""

import json
from pathlib import Path
from typing import Any

import pytest

from s2v_tasks.errors import PermanentError
from s2v_tasks.ingestion.manifest import BatchEntry, RowError, job_ids, read_manifest
from s2v_tasks.schemas.preset import load_presets

PRESETS = load_presets(Path(__file__).parents[3] / "config")
URI = "s3://bucket/batch/monday.jsonl"
ROW = {"image_uri": "anna.png", "audio_uri": "s3://bucket/voices/a.wav", "prompt": "A person speaks."}


def read(*rows: Any, uri: str = URI) -> tuple[list[BatchEntry], list[RowError]]:
    return read_manifest("\n".join(json.dumps(row) for row in rows).encode(), uri, PRESETS)


def test_names_without_a_bucket_lie_beside_the_manifest() -> None:
    """Full URIs stay what they are."""
    (entry,), errors = read(ROW | {"id": "welcome"})
    assert errors == []
    assert (entry.row_number, entry.row_id) == (1, "welcome")
    assert entry.request.image_uri == "s3://bucket/batch/anna.png"
    assert entry.request.audio_uri == "s3://bucket/voices/a.wav"


def test_csv_says_the_same_as_json_lines() -> None:
    """Empty cells are left out, numbers are read, labels have columns of their own, a byte order mark is no harm."""
    heading = "id,image_uri,audio_uri,prompt,num_clip,start_from_ref,labels.team"
    text = f'{heading}\n1,a.png,a.wav,"Hello, you",2,true,\n2,a.png,a.wav,Hi,,,news\n'
    entries, errors = read_manifest(b"\xef\xbb\xbf" + text.encode(), "s3://bucket/b.csv", PRESETS)
    assert errors == []
    first, second = (entry.request for entry in entries)
    assert (first.prompt, first.num_clip, first.start_from_ref, first.labels) == ("Hello, you", 2, True, {})
    assert (second.num_clip, second.start_from_ref, second.labels) == (None, False, {"team": "news"})


def test_all_errors_are_found_row_by_row() -> None:
    """Each wrong row has its sentence; the right ones are not lost."""
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
    entries, errors = read_manifest(text.encode(), URI, PRESETS)
    assert [entry.row_number for entry in entries] == [1, 9]
    assert [error.row_number for error in errors] == [2, 3, 4, 5, 6, 7, 8]
    words = [
        "not JSON",
        "JSON list",
        "'a' is that of an earlier row",
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
        (b"prompt,id,prompt\nx,1,y\n", "b.csv", "column 'prompt' is there twice"),
    ],
)
def test_what_is_no_manifest_is_refused(data: bytes, name: str, sentence: str) -> None:
    """The sentence names the manifest."""
    with pytest.raises(PermanentError, match=sentence) as refused:
        read_manifest(data, f"s3://bucket/{name}", PRESETS)
    assert name in str(refused.value)


@pytest.mark.parametrize("row_id", ["", "a" * 201, "\0", "\x1b[2J", "two\nlines", "\ud800"])
def test_an_id_is_text_that_can_be_printed(row_id: str) -> None:
    """Neither a terminal nor a table is upset by it; other alphabets, emoji and no-break spaces are text."""
    entries, (error,) = read(ROW | {"id": row_id}, ROW | {"id": "Ünfug\u00a0👩\u200d🎤"})
    assert [entry.row_number for entry in entries] == [2]
    assert "expected a text of 1 to 200 characters" in error.error
    assert error.error.isprintable()


def test_a_csv_row_with_too_many_cells_is_wrong() -> None:
    """An unquoted comma is found, not guessed."""
    _, (error,) = read_manifest(b"prompt,image_uri\nHello, you,a.png\n", "s3://bucket/b.csv", PRESETS)
    assert "more or fewer cells" in error.error


def test_job_ids_come_from_what_a_row_asks_for() -> None:
    """Order does not matter; equal rows are told apart; a changed row has another job, and only that one."""
    rows = [ROW | {"id": "a"}, ROW | {"id": "b"}, ROW, ROW]
    first = job_ids(URI, read(*rows)[0])
    assert len(set(first)) == 4
    assert first[0].startswith("a-")
    assert sorted(job_ids(URI, read(*reversed(rows))[0])) == sorted(first)
    changed = job_ids(URI, read(rows[0] | {"prompt": "Other."}, *rows[1:])[0])
    assert changed[0] != first[0]
    assert changed[1:] == first[1:]
    assert not set(job_ids("s3://bucket/other.jsonl", read(*rows)[0])) & set(first)
