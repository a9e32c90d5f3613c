"""Check the drop folder: each folder becomes one job, or is rejected with a reason."""

import json
from typing import Any

import pytest
import sqlalchemy as sa
from structlog.testing import capture_logs

from s2v_tasks.errors import TransientError
from s2v_tasks.ingestion import drop_sweep
from s2v_tasks.settings import Settings
from s2v_tasks.storage.s3 import ObjectStore
from tests.integration.drop_folder import PROMPT, Folder, counts


def test_a_dropped_folder_is_a_waiting_job_whose_files_are_accepted(folder: Folder) -> None:
    """The job names the moved files, and has the fields, the labels and the time of the drop."""
    folder.drop("anna", {"preset": "quick", "priority": "high", "labels": {"team": "news"}})
    written = max(item.modified_at for item in folder.store.listing(f"{folder.uri}/incoming/"))
    assert folder.sweep() == counts(accepted=1)
    assert folder.names() == [
        "accepted/anna/portrait.png",
        "accepted/anna/prompt.txt",
        "accepted/anna/request.json",
        "accepted/anna/speech.wav",
    ]
    (job,) = folder.jobs.recent()
    assert (job.status, job.source, job.preset, job.priority, job.labels, job.dag_run_id) == (
        *("queued", "drop", "quick", "high", {"team": "news"}),
        None,
    )
    assert job.created_at == written
    assert None not in job.request.values()
    (request,) = folder.requests()
    assert folder.store.get_bytes(request.image_uri) == b"image"
    assert folder.store.get_bytes(request.audio_uri) == b"audio"
    assert [waiting.job_id for waiting in folder.queue.next(max_running=5)] == [job.job_id]
    assert folder.sweep() == counts()


def test_a_folder_without_a_request_is_taken_when_it_was_left_alone(folder: Folder) -> None:
    """A folder is taken after a time without new files, and a missing file is then reported."""
    folder.drop("anna", prompt__txt=b"")
    assert folder.sweep(seconds_later=300) == counts(unready=1)
    folder.put("anna/prompt.txt", PROMPT)
    assert folder.sweep() == counts(unready=1)
    assert folder.sweep(seconds_later=61) == counts(accepted=1)
    folder.drop("berta", speech__wav=b"")
    assert folder.sweep(seconds_later=4000) == counts(rejected=1)
    assert "no audio file; there are: 'portrait.png', 'prompt.txt'" in folder.error("berta")


def test_what_systems_leave_behind_moves_along_and_makes_no_drop(folder: Folder) -> None:
    """Files of macOS and Windows are moved with a drop, and make no drop when they come later."""
    folder.drop("anna", {})
    for name in ("._portrait.png", ".DS_Store", "Thumbs.db", "~$notes.docx"):
        folder.put(f"anna/{name}", b"junk")
    assert folder.sweep() == counts(accepted=1)
    assert folder.names("incoming/") == []
    assert len(folder.names("accepted/anna/")) == 8
    folder.put("anna/.DS_Store", b"again")
    assert folder.sweep(seconds_later=10_000) == counts()
    folder.drop("anna", {})
    assert folder.sweep() == counts(rejected=1)
    assert "Exactly these files were dropped here before" in folder.error("anna")


def test_an_unfinished_upload_is_waited_for_and_reported(folder: Folder) -> None:
    """A folder with an unfinished upload waits, also if its request is already there."""
    for name in ("anna", "berta"):
        folder.drop(name, {}, speech__wav=b"")
        folder.put(f"{name}/speech.wav.part", b"aud")
    assert folder.sweep(seconds_later=3000) == counts(unready=2)
    folder.store.delete(f"{folder.uri}/incoming/anna/speech.wav.part")
    folder.put("anna/speech.wav", b"audio")
    assert folder.sweep() == counts(accepted=1, unready=1)
    assert folder.sweep(seconds_later=4000) == counts(rejected=1)
    assert "'speech.wav.part': an unfinished upload" in folder.error("berta")


def test_a_published_video_is_no_input_of_a_drop(folder: Folder, s3_settings: Settings) -> None:
    """A request that names files of other prefixes of the installation is refused."""
    uri = f"{s3_settings.output_uri}/earlier.wav"
    folder.store.put_bytes(uri, b"x", "audio/wav")
    folder.drop("anna", {"audio_uri": uri}, speech__wav=b"")
    assert folder.sweep() == counts(rejected=1)
    assert "earlier.wav may not be read for a request" in folder.error("anna")


def test_bad_folders_are_rejected_with_reasons(folder: Folder) -> None:
    """Each bad folder keeps its files and gets an error.json; good folders beside it become jobs."""
    folder.drop("bad-json", b"{")
    folder.drop("bad-field", {"infer_frames": 50})
    folder.drop("bad-preset", {"preset": "fast"})
    folder.drop("bad-adapter", {"adapters": [{"name": "cinema"}]})
    folder.drop("bad-file", {"image_uri": "../other/portrait.png"})
    folder.drop("bad-place", {"audio_uri": "s3://somewhere-else/a.wav"})
    folder.drop("good", {})
    assert folder.sweep() == counts(accepted=1, rejected=6)
    assert "not JSON" in folder.error("bad-json")
    assert "infer_frames 50" in folder.error("bad-field")
    assert "fast" in folder.error("bad-preset")
    assert "adapter 'cinema' is not an entry of adapters.yaml" in folder.error("bad-adapter")
    assert "'../other/portrait.png' is not a file of the folder" in folder.error("bad-file")
    assert "s3://somewhere-else/a.wav may not be read" in folder.error("bad-place")
    assert "rejected/bad-json/portrait.png" in folder.names("rejected/")
    assert folder.names("incoming/") == []
    assert len(folder.jobs.recent()) == 1


def test_the_same_files_again_are_no_second_job_and_changed_ones_are(folder: Folder) -> None:
    """A repeated drop is refused with the id of its job; the files of the earlier drop stay."""
    for _ in range(3):
        folder.drop("anna", {})
        folder.sweep()
    (job,) = folder.jobs.recent()
    assert f"are job {job.job_id}" in folder.error("anna")
    folder.drop("anna", {}, speech__wav=b"another speech")
    assert folder.sweep() == counts(accepted=1)
    first, second = sorted(folder.requests(), key=lambda request: len(request.audio_uri))
    assert folder.store.get_bytes(first.audio_uri) == b"audio"
    assert folder.store.get_bytes(second.audio_uri) == b"another speech"


def test_a_job_id_can_be_chosen_once(folder: Folder) -> None:
    """The second folder with the same job id is rejected, in whatever order they come."""
    folder.drop("anna", {"job_id": "job-1"})
    folder.drop("berta", {"job_id": "job-1"})
    assert folder.sweep() == counts(accepted=1, rejected=1)
    assert [job.job_id for job in folder.jobs.recent()] == ["job-1"]
    rejected = next(name for name in folder.names("rejected/") if name.endswith("error.json")).split("/")[1]
    assert "Job job-1 exists already" in folder.error(rejected)


def test_names_are_data(folder: Folder) -> None:
    """Names with spaces, emoji and quotes make a job, whose files get plain names."""
    name = "My 🎬 'folder' (1)"
    folder.drop(name, portrait__png=b"")
    folder.put(f"{name}/my photo 🎬.PNG", b"image")
    folder.put(f"{name}/request.json", json.dumps({"image_uri": "my photo 🎬.PNG"}).encode())
    assert folder.sweep() == counts(accepted=1)
    (request,) = folder.requests()
    assert folder.store.get_bytes(request.image_uri) == b"image"
    assert request.image_uri.isascii()
    assert folder.names("incoming/") == []
    elsewhere = folder.store.uri("Fotos für Anna/Über uns 🎬.png")
    folder.drop("berta", {"image_uri": elsewhere}, portrait__png=b"")
    assert folder.sweep() == counts(accepted=1)
    assert elsewhere in [request.image_uri for request in folder.requests()]


def test_names_that_no_store_understands_alike_are_refused_and_left_alone(folder: Folder) -> None:
    """The folder is rejected with its other files; a file that cannot be addressed stays and is no new drop."""
    folder.drop("anna", {})
    incoming = f"{folder.uri}/incoming".removeprefix(f"s3://{folder.store.bucket}/")
    for name in ("anna/more//b.wav", "../c.png"):
        # Past our own store, which would refuse to write it.
        folder.store._client.put_object(Bucket=folder.store.bucket, Key=f"{incoming}/{name}", Body=b"x")
    assert folder.sweep() == counts(rejected=1, unready=1)
    assert "'more//b.wav': a name that S3 cannot address" in folder.error("anna")
    assert folder.sweep(seconds_later=10_000) == counts(unready=2)
    assert folder.jobs.recent() == []


def test_a_folder_that_cannot_be_moved_waits_for_the_next_sweep(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other folders are taken; if none can be moved, the sweep fails and is retried."""
    for name in ("anna", "berta", "carl"):
        folder.drop(name, {})
    copy = folder.store.copy

    def failing(source: str, target: str, **options: Any) -> None:
        if any(name in source for name in stuck):
            raise TransientError("the store is busy")
        copy(source, target, **options)

    monkeypatch.setattr(folder.store, "copy", failing)
    stuck = ["anna", "carl"]
    assert folder.sweep() == counts(accepted=1, postponed=2)
    with pytest.raises(TransientError, match="None of 2 folders could be moved"):
        folder.sweep()
    stuck = ["carl"]
    assert folder.sweep() == counts(accepted=1, postponed=1)
    stuck = []
    assert folder.sweep() == counts(accepted=1)
    assert len(folder.names("accepted/")) == 12


def test_names_with_control_characters_are_moved(folder: Folder) -> None:
    """A folder and files with characters that XML cannot hold move once, and do not make the sweep fail for ever."""
    folder.drop("an\x1bna\x08", {"image_uri": "portrait.png"}, **{"note\x0b__txt": b"note"})
    folder.drop("berta\x7f\x9f\u202e")
    assert folder.sweep(seconds_later=10_000) == counts(accepted=2)
    assert folder.names("incoming/") == []
    assert folder.sweep(seconds_later=10_000) == counts()


def test_a_folder_with_very_many_files_stays(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its files would be copied for hours while others wait: it is left, the log says so, and others are taken."""
    monkeypatch.setattr(drop_sweep, "MAX_FILES", 5)
    folder.drop("anna", {}, **{"more": b"1", ".hidden": b"2"})
    folder.drop("berta", {}, **{".hidden": b"2"})
    with capture_logs() as lines:
        assert folder.sweep() == counts(accepted=1, unready=1)
    assert len(folder.names("incoming/anna/")) == 6
    [line] = [line for line in lines if line["event"] == "drop_has_too_many_files"]
    assert (line["folder"].endswith("/incoming/anna"), line["files"]) == (True, 6)


def test_small_files_are_bounded_before_they_are_read(folder: Folder) -> None:
    """A prompt of 64 KiB is read and refused for its length; a larger file is not read."""
    folder.drop("anna", {}, prompt__txt=b"x" * 65536)
    folder.drop("berta", {}, prompt__txt=b"x" * 65537)
    folder.drop("carl", b" " * 65537)
    assert folder.sweep() == counts(rejected=3)
    assert "(65536 characters)" in folder.error("anna")
    assert "prompt.txt has 65537 bytes: expected at most 65536" in folder.error("berta")
    assert "request.json has 65537 bytes: expected at most 65536" in folder.error("carl")


def test_only_one_sweep_runs_at_a_time(folder: Folder) -> None:
    """A second sweep ends with a transient error."""
    with folder.drops.sweep_lock(), pytest.raises(TransientError, match="Another sweep"):
        folder.sweep()
    assert folder.sweep() == counts()


def test_many_drops_become_exactly_their_jobs(folder: Folder) -> None:
    """Sixty folders with duplicates, broken ones and unfinished ones become their jobs despite a killed sweep."""
    for number in range(40):
        folder.drop(f"good-{number:02}", {"base_seed": number, "priority": "high" if number == 39 else "normal"})
    for number in range(10):
        folder.drop(f"bad-{number:02}", {"num_clip": 0})
    for number in range(5):
        folder.drop(f"slow-{number:02}", speech__wav=b"")
    assert folder.sweep() == counts(accepted=40, rejected=10, unready=5)
    for number in range(5):
        folder.drop(f"good-{number:02}", {"base_seed": number, "priority": "normal"})
        folder.put(f"slow-{number:02}/speech.wav", b"audio")
        folder.put(f"slow-{number:02}/request.json", b"{}")
    assert folder.sweep() == counts(accepted=5, rejected=5)
    jobs = folder.jobs.recent(limit=100)
    assert len(jobs) == 45
    assert {request.base_seed for request in folder.requests()} == {-1, *range(40)}
    assert folder.names("incoming/") == []


def test_a_file_beyond_the_bound_of_the_installation_is_refused(
    s3_settings: Settings, object_store: ObjectStore, engine: sa.Engine
) -> None:
    """The message names the setting, and nothing is downloaded."""
    small = Folder(s3_settings.model_copy(update={"max_input_bytes": 4}), object_store, engine)
    small.drop("anna", {})
    assert small.sweep() == counts(rejected=1)
    assert "'portrait.png' has 5 bytes: expected 1 to 4 (S2V_MAX_INPUT_BYTES)" in small.error("anna")
