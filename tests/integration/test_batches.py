"""Check batches on an S3 server and a database: validation, start of jobs, and reports."""

import csv
import hashlib
import io
import re
import unicodedata
from collections.abc import Iterator
from datetime import timedelta
from itertools import pairwise
from typing import Any

import pytest

from s2v_tasks.errors import PermanentError
from s2v_tasks.settings import Settings
from tests.integration.batch_site import Site, rows


def test_files_of_a_batch_may_have_any_name(site: Site) -> None:
    """Rows name files relative to the manifest or by URI."""
    name = "Größe & Ünfug 🎬 #1.png"
    site.store.put_bytes(f"batch/{name}", b"x", "image/png")
    site.put([rows(1)[0] | {"image_uri": name}, rows(2)[1] | {"image_uri": site.store.uri(f"batch/{name}")}])
    assert site.batches.start(site.uri)["new_jobs"] == 2


def nfd(text: str) -> str:
    return unicodedata.normalize("NFD", text)


@pytest.mark.parametrize("count", [3, 25], ids=["one by one", "by listing"])
def test_files_of_a_batch_are_found_in_another_normal_form(site: Site, count: int) -> None:
    """Names in NFC find files in NFD; two files that differ only in their form are ambiguous."""
    for name in (f"{nfd('Große Fotos')}/ü.png", f"{nfd('Große Fotos')}/{nfd('é.png')}", "ö é.png", nfd("ö é.png")):
        site.store.put_bytes(f"batch/{name}", b"x", "image/png")
    right, wrong = rows(count), rows(3)
    right[0]["image_uri"], right[1]["image_uri"] = "Große Fotos/ü.png", site.store.uri("batch/Große Fotos/é.png")
    site.put(right)
    assert site.batches.check(site.uri)[1] == []
    wrong[0]["image_uri"], wrong[1]["image_uri"] = f"{nfd('ö')} é.png", "Große Fotos"
    wrong[2]["image_uri"] = "Große Fotos/ä.png"
    site.put(wrong + right)
    entries, errors = site.batches.check(site.uri)
    assert [error.line for error in errors[:3]] == [1, 2, 3]
    assert "matches 2 objects whose names differ only in their Unicode normal form" in errors[0].error
    assert "is a folder, not a file" in errors[1].error
    assert "does not exist" in errors[2].error
    assert len(entries) + len(errors) == count + 3


def test_all_errors_of_a_row_are_listed(site: Site) -> None:
    """A wrong field is listed together with files that are missing or may not be read."""
    site.put([
        rows(1)[0],
        rows(2)[1]
        | {"image_uri": "nobody.png", "num_clip": 0, "audio_uri": "s3://somewhere-else/a.wav", "preset": "x"},
    ])
    (entry,), (error,) = site.batches.check(site.uri)
    assert (entry.line, error.line, error.row_id) == (1, 2, "row-1")
    for words in ("num_clip 0", "'x' is unknown", "nobody.png does not exist", "somewhere-else/a.wav may not be read"):
        assert words in error.error


@pytest.mark.parametrize("count", [1, 25], ids=["one by one", "by listing"])
def test_an_input_that_only_the_installation_reads_is_refused(site: Site, s3_settings: Settings, count: int) -> None:
    """A published file is refused as an input, although it exists."""
    uris = [f"{s3_settings.output_uri}/earlier-{number}.png" for number in range(count)]
    for uri in uris:
        site.store.put_bytes(uri, b"x", "image/png")
    site.put([row | {"image_uri": uri} for row, uri in zip(rows(count), uris, strict=True)])
    entries, errors = site.batches.check(site.uri)
    assert entries == []
    for uri, error in zip(uris, errors, strict=True):
        assert f"{uri.rpartition('/')[2]} may not be read for a request" in error.error


def test_the_same_manifest_starts_nothing_and_a_changed_row_starts_one(site: Site) -> None:
    """A row whose job exists, in any status, starts no second job; a changed row starts one."""
    site.put(rows(5))
    first = site.batches.start(site.uri)
    assert (first["rows"], first["new_jobs"], site.queue.num_waiting()) == (5, 5, 5)
    assert site.batches.start(site.uri) == first | {"new_jobs": 0}
    changed = rows(5)
    changed[3]["prompt"] = "Another prompt."
    site.put(changed)
    second = site.batches.start(site.uri)
    assert second["batch_id"] != first["batch_id"]
    assert (second["new_jobs"], site.queue.num_waiting()) == (1, 6)


def test_jobs_of_a_batch_start_in_the_order_of_the_manifest(site: Site) -> None:
    """Jobs start in the order of rows, up to the limit, and before those of a later batch."""
    site.put(rows(12))
    site.batches.start(site.uri)
    started = site.queue.next(max_running=4)
    assert [job.request["prompt"] for job in started] == ["0 speaks.", "1 speaks.", "2 speaks.", "3 speaks."]
    times = sorted(job.created_at for job in site.jobs.recent())
    assert {later - earlier for earlier, later in pairwise(times)} == {timedelta(microseconds=1)}
    site.queue.mark_started([job.job_id for job in started])
    assert site.queue.next(max_running=4) == []
    assert site.jobs.recent()[0].source == "batch"


def test_a_job_of_a_batch_keeps_only_the_fields_that_its_row_gives(site: Site) -> None:
    """Leave out fields that are null in the row or missing: the preset decides about them when the job starts."""
    site.put([rows(1)[0] | {"sample_steps": 7, "num_clip": None}])
    site.batches.start(site.uri)
    (job,) = site.queue.next(max_running=1)
    assert job.request["sample_steps"] == 7
    assert "num_clip" not in job.request
    assert None not in job.request.values()


def test_failed_rows_are_started_again_on_request(site: Site) -> None:
    """Failed jobs get another run; running and succeeded ones do not change."""
    site.put(rows(4))
    site.batches.start(site.uri)
    first = site.queue.next(max_running=4)
    site.queue.mark_started([turn.job_id for turn in first])
    site.jobs.succeed(first[0].job_id, "s3://out/a.mp4", "ab" * 32)
    site.jobs.fail(first[1].job_id, "No GPU.")
    assert site.batches.start(site.uri)["retried_jobs"] == site.queue.num_waiting() == 0
    for number in (2, 3):
        assert site.batches.start(site.uri, retry_failed=True)["retried_jobs"] == 1
        (turn,) = site.queue.next(max_running=4)
        assert (turn.job_id, turn.run_id) == (first[1].job_id, f"{first[1].job_id}--{number}")
        site.queue.mark_started([turn.job_id])
        assert site.jobs.get(turn.job_id).dag_run_id == turn.run_id
        assert site.batches.start(site.uri, retry_failed=True)["retried_jobs"] == 0
        site.jobs.fail(turn.job_id, "No GPU.")


def test_one_wrong_row_stops_the_batch_and_all_errors_are_reported(site: Site) -> None:
    """With one bad field or missing file, nothing is queued; the report is deleted once the manifest is right."""
    wrong = rows(30)
    wrong[2]["image_uri"] = "nobody.png"
    wrong[7]["infer_frames"] = 50
    wrong[9]["audio_uri"] = "s3://somewhere-else/a.wav"
    for number in range(10, 30):
        wrong[number]["audio_uri"] = f"speech-{number}.wav"
    site.put(wrong)
    with pytest.raises(
        PermanentError, match=r"23 of 30 rows .* line 3: .*nobody.png does not exist.*; line 8: .*"
    ) as e:
        site.batches.start(site.uri)
    report = f"{site.uri}.errors.csv"
    assert report in str(e.value)
    table = list(csv.DictReader(io.StringIO(site.store.get_bytes(report).decode())))
    assert [int(row["line"]) for row in table] == [3, 8, *range(10, 31)]
    assert table[0]["row_id"] == "row-2"
    assert "somewhere-else" in table[2]["error"]
    assert site.queue.num_waiting() == 0
    assert len(site.batches.check(site.uri)[1]) == 23
    site.put(rows(3))
    site.batches.start(site.uri)
    assert not site.store.exists(report)


def test_a_refused_batch_names_its_first_five_errors(site: Site) -> None:
    """The message has five errors, the report all of them, and nothing is queued."""
    site.put([row | {"num_clip": 0} for row in rows(7)])
    with pytest.raises(PermanentError, match=r"7 of 7 rows .* line 1: .*; line 5: ") as refused:
        site.batches.start(site.uri)
    assert "line 6" not in str(refused.value)
    assert site.store.get_bytes(f"{site.uri}.errors.csv").decode().startswith("line,row_id,error\r\n1,row-0,")


def test_a_manifest_beside_which_nothing_may_be_written_starts_nothing(site: Site) -> None:
    """A manifest in a place without write access is refused before anything is read or queued."""
    with pytest.raises(PermanentError, match=r"monday.jsonl.errors.csv may not be written"):
        site.batches.start("s3://elsewhere/monday.jsonl")
    assert site.queue.num_waiting() == 0


@pytest.mark.parametrize("name", ["monday.jsonl", "/data/monday.jsonl", "https://host/monday.csv", ""])
def test_a_manifest_outside_s3_is_refused(site: Site, name: str) -> None:
    """A local file and another URL are named as they were typed, and not looked for in the data bucket."""
    for work in (site.batches.check, site.batches.start):
        with pytest.raises(
            PermanentError, match=f"^'{re.escape(name)}' is not an S3 URI: .* upload the manifest first"
        ):
            work(name)


def test_a_batch_id_is_that_of_the_manifest_and_its_bytes(site: Site) -> None:
    """The id has 24 hex digits of the URI and the bytes, so that the same rows in another file are another batch."""
    site.put(rows(2))
    first = site.batches.start(site.uri)["batch_id"]
    etag = hashlib.sha256(site.store.get_bytes(site.uri)).hexdigest()
    assert first == hashlib.sha256(f"{site.uri}@{etag}#lines".encode()).hexdigest()[:24]
    other = site.store.uri("batch/tuesday.jsonl")
    site.store.put_bytes(other, site.store.get_bytes(site.uri), "application/jsonl")
    second = site.batches.start(other)["batch_id"]
    assert re.fullmatch(r"[0-9a-f]{24}", first)
    assert re.fullmatch(r"[0-9a-f]{24}", second)
    assert first != second


def test_ten_thousand_rows_are_one_batch(site: Site) -> None:
    """The largest manifest is checked and queued at once."""
    site.put(rows(10_000))
    started = site.batches.start(site.uri)
    assert (started["rows"], started["new_jobs"]) == (10_000, 10_000)
    assert len(site.queue.next(max_running=16)) == 16


@pytest.mark.parametrize(("count", "listed"), [(19, False), (20, True)])
def test_a_folder_is_listed_where_more_than_twenty_files_of_it_are_named(
    site: Site, monkeypatch: pytest.MonkeyPatch, count: int, listed: bool
) -> None:
    """Up to twenty files of a folder are looked up one by one; a listing ends with the last file that is needed."""
    for number in range(40):
        site.store.put_bytes(f"batch/{number:02}.png", b"x", "image/png")
    site.store.put_bytes("batch/00.wav", b"x", "audio/wav")
    site.put([row | {"image_uri": f"{n:02}.png", "audio_uri": "00.wav"} for n, row in enumerate(rows(count))])
    seen: list[str] = []
    listing = site.store.listing

    def noted(uri: str) -> Iterator[Any]:
        for item in listing(uri):
            seen.append(item.uri)
            yield item

    monkeypatch.setattr(site.store, "listing", noted)
    assert site.batches.check(site.uri)[1] == []
    assert len(seen) == (count + 1 if listed else 0)


def test_a_manifest_beyond_the_bound_is_not_read(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A manifest above the size limit is refused at the check and at the start; one at the limit is accepted."""
    site.put(rows(2))
    size_bytes = len(site.store.get_bytes(site.uri))
    monkeypatch.setattr("s2v_tasks.ingestion.batches.MAX_BYTES", size_bytes - 1)
    for call in (site.batches.check, site.batches.start):
        with pytest.raises(PermanentError, match=f"{size_bytes} bytes"):
            call(site.uri)
    monkeypatch.setattr("s2v_tasks.ingestion.batches.MAX_BYTES", size_bytes)
    assert site.batches.check(site.uri)[1] == []
    assert site.batches.start(site.uri)["new_jobs"] == 2
