"""Check claims of the drop folder: names in use, concurrent sweeps, and messages."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from structlog.testing import capture_logs

from s2v_tasks.errors import TransientError
from s2v_tasks.ingestion.drop_folder import folders
from tests.integration.drop_folder import Folder


@pytest.fixture
def overtaken(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[Any]]:
    """Lets another sweep win for a number of claims; gives the claims that were tried."""
    claim, tried = folder.drops.claim, []

    def overtake(times: int) -> list[Any]:
        def lost(drop: Any, job: Any) -> bool:
            tried.append(drop)
            return len(tried) > times and claim(drop, job)

        monkeypatch.setattr(folder.drops, "claim", lost)
        return tried

    return overtake


def test_a_claim_that_another_was_quicker_with_is_tried_again(
    folder: Folder, overtaken: Callable[[int], list[Any]]
) -> None:
    """A claim that another sweep has taken is tried again up to four times, and then succeeds."""
    folder.drop("anna", {})
    tried = overtaken(4)
    assert folder.sweep()["accepted"] == 1
    assert len(tried) == 5
    assert len(folder.names("accepted/anna/")) == 4


def test_a_claim_that_others_always_win_is_left_to_the_next_sweep(
    folder: Folder, overtaken: Callable[[int], list[Any]]
) -> None:
    """After five lost claims nothing is moved, and the log has the reason."""
    folder.drop("anna", {})
    tried = overtaken(99)
    with capture_logs() as lines, pytest.raises(TransientError, match="None of 1 folders"):
        folder.sweep()
    assert len(tried) == 5
    assert len(folder.names("incoming/anna/")) == 4
    [line] = [line for line in lines if line["event"] == "drop_postponed"]
    assert line["folder"].endswith("/incoming/anna")
    assert "claimed the name of this drop" in line["error"]


def test_folders_of_one_name_go_to_places_of_their_own(folder: Folder) -> None:
    """The first folder keeps its name; others get a suffix of their files, and a number if that is taken, too."""
    folder.drop("anna", {})
    etags = []
    for number in range(5):
        if number:
            folder.drop("anna", {"job_id": "no"})
        [found] = folders(folder.store.listing(f"{folder.uri}/incoming/"), f"{folder.uri}/incoming")
        etags.append(found.etag[:8])
        folder.sweep()
    assert {name.split("/")[1] for name in folder.names("accepted/")} == {"anna"}
    etag = etags[-1]
    assert {name.split("/")[1] for name in folder.names("rejected/")} == {
        "anna", f"anna-{etag}", f"anna-{etag}-2", f"anna-{etag}-3"
    }  # fmt: skip


@pytest.mark.parametrize("field", ["image_uri", "audio_uri", "pose_video_uri"])
def test_every_input_of_a_drop_is_checked(folder: Folder, field: str) -> None:
    """Each field that names a place which requests may not read is the reason of a refusal."""
    folder.drop("anna", {field: "s3://somewhere-else/file.mp4"})
    folder.drop("zoe", {})
    assert folder.sweep() == {"accepted": 1, "rejected": 1, "postponed": 0, "unready": 0}
    assert "s3://somewhere-else/file.mp4 may not be read" in folder.error("anna")


def test_a_rejected_folder_that_is_dropped_again_gets_the_new_reason(folder: Folder) -> None:
    """The error.json of an earlier rejection, which lies in the folder, does not replace the new one."""
    folder.drop("anna", {"size": "1*1"}, error__json=b'{"error": "an earlier one"}')
    assert folder.sweep()["rejected"] == 1
    assert "size '1*1'" in folder.error("anna")
    assert folder.names("incoming/") == []


def test_a_refusal_has_reason_and_remedy(folder: Folder) -> None:
    """error.json has the reason, the remedy, the names of all files and the time, in readable UTF-8."""
    folder.drop("anna", {"image_uri": "Größe.png"})
    before = datetime.now(UTC).replace(microsecond=0)
    with capture_logs() as lines:
        folder.sweep()
    data = folder.store.get_bytes(f"{folder.uri}/rejected/anna/error.json")
    assert "Größe.png" in data.decode()
    assert data.decode().count("\n  ") >= 5
    report = json.loads(data)
    assert sorted(report) == ["error", "files", "folder", "rejected_at", "what_to_do"]
    assert report["files"] == ["portrait.png", "prompt.txt", "request.json", "speech.wav"]
    assert report["folder"] == f"{folder.uri}/incoming/anna"
    assert "drop the folder again" in report["what_to_do"]
    assert before <= datetime.fromisoformat(report["rejected_at"]) <= datetime.now(UTC)
    [line] = [line for line in lines if line["event"] == "drop_rejected"]
    assert (line["folder"], line["target"]) == (report["folder"], f"{folder.uri}/rejected/anna")
    assert "Größe.png" in str(line["error"])
    key = f"{folder.uri}/rejected/anna/error.json".removeprefix(f"s3://{folder.store.bucket}/")
    found = folder.store._client.head_object(Bucket=folder.store.bucket, Key=key)
    assert found["ContentType"] == "application/json"


def test_a_taken_folder_is_in_the_log_with_its_job(folder: Folder) -> None:
    """The log line of an accepted folder has its job id."""
    folder.drop("anna", {})
    with capture_logs() as lines:
        folder.sweep()
    [line] = [line for line in lines if line["event"] == "drop_accepted"]
    [job] = folder.jobs.recent()
    assert (line["folder"], line["job_id"]) == (f"{folder.uri}/incoming/anna", job.job_id)


def test_at_most_five_names_that_cannot_be_addressed_are_listed(folder: Folder) -> None:
    """The message lists five names; a folder that cannot be addressed is logged and stays."""
    folder.drop("anna", {})
    prefix = f"{folder.uri}/incoming".removeprefix(f"s3://{folder.store.bucket}/")
    for name in (*(f"anna/x//{number}.wav" for number in range(6)), "../c.png"):
        # Past our own store, which would refuse to write it.
        folder.store._client.put_object(Bucket=folder.store.bucket, Key=f"{prefix}/{name}", Body=b"x")
    with capture_logs() as lines:
        assert folder.sweep()["rejected"] == 1
    assert [f"'x//{number}.wav'" in folder.error("anna") for number in range(6)] == [True] * 5 + [False]
    [line] = [line for line in lines if line["event"] == "drop_not_addressable"]
    assert line["folder"].endswith("/incoming/..")


def test_a_folder_of_a_name_that_has_no_free_place_is_left(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a thousand occupied places the folder stays, and the log says so."""
    folder.drop("anna", {})
    tried: list[str] = []
    monkeypatch.setattr(folder.drops, "is_target", lambda uri: tried.append(uri) is None)
    with capture_logs() as lines, pytest.raises(TransientError, match="None of 1 folders"):
        folder.sweep()
    assert len(set(tried)) == len(tried) == 1000
    [line] = [line for line in lines if line["event"] == "drop_postponed"]
    assert "'anna' was dropped a thousand times: expected another name" in line["error"]


def test_the_copy_gets_the_size_of_the_file(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """The size in the listing is passed to the copy, which saves a request for each file."""
    folder.drop("anna", {})
    sizes: list[int | None] = []
    copy = folder.store.copy

    def noted(source: str, target: str, *, size_bytes: int | None = None) -> None:
        sizes.append(size_bytes)
        copy(source, target, size_bytes=size_bytes)

    monkeypatch.setattr(folder.store, "copy", noted)
    assert folder.sweep()["accepted"] == 1
    assert sorted(sizes) == [2, 5, 5, 16]


def test_a_defect_at_one_folder_keeps_no_other_waiting(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders that arrive with it and later become jobs, although each sweep reports the defect."""
    copy = folder.store.copy

    def defective(source: str, target: str, **options: Any) -> None:
        if "/anna/" in source:
            raise KeyError("ETag")
        copy(source, target, **options)

    monkeypatch.setattr(folder.store, "copy", defective)
    folder.drop("anna", {})
    for name in ("bob", "carl"):
        folder.drop(name, {})
        with capture_logs() as lines, pytest.raises(KeyError, match="ETag"):
            folder.sweep()
        assert [line["folder"].rpartition("/")[2] for line in lines if line["event"] == "drop_postponed"] == ["anna"]
        assert len(folder.names(f"accepted/{name}/")) == 4
