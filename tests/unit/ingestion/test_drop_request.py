"""From dropped files to a request: what may be left out, what is refused, and in which words."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from s2v_tasks.errors import PermanentError
from s2v_tasks.ingestion.drop_request import DropRequest, DropTexts, default_job_id, request_of_drop
from s2v_tasks.ingestion.folders import DropFolder, folders, plain_name
from s2v_tasks.storage.objects import ListedObject

INCOMING = "s3://bucket/drop/incoming"
WRITTEN = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)


def listed(name: str, *, size_bytes: int = 10, etag: str = "e1") -> ListedObject:
    return ListedObject(f"{INCOMING}/{name}", size_bytes, WRITTEN, etag)


def folder(*names: str, name: str = "anna") -> DropFolder:
    (found,) = folders([listed(f"{name}/{file}") for file in names], INCOMING)
    return found


def request_of(dropped: DropFolder, marker: Any = None, prompt: bytes | None = b"A person speaks.\n") -> DropRequest:
    data = marker if isinstance(marker, bytes | None) else json.dumps(marker).encode()
    return request_of_drop(dropped, DropTexts(data, prompt), "s3://bucket/drop/accepted/anna", max_input_bytes=1000)


def test_a_folder_of_a_person_needs_no_request_file() -> None:
    """The only image, the only audio and prompt.txt make the request; its files are those at the target."""
    found = request_of(folder("me.JPG", "talk.mp3", "prompt.txt", "pose.mp4", "notes.docx"))
    assert found.request.image_uri == "s3://bucket/drop/accepted/anna/me.JPG"
    assert found.request.audio_uri == "s3://bucket/drop/accepted/anna/talk.mp3"
    assert found.request.pose_video_uri == "s3://bucket/drop/accepted/anna/pose.mp4"
    assert found.request.prompt == "A person speaks."


def test_a_request_file_names_files_of_the_folder_or_objects_elsewhere() -> None:
    """A plain name is a file of the folder, a full URI stays what it is, other fields are those of a request."""
    marker = {
        "image_uri": "b.png",
        "audio_uri": "s3://voices/a.wav",
        "prompt": "Hello",
        "preset": "quick",
        "job_id": "job-7",
    }
    found = request_of(folder("a.png", "b.png", "request.json"), marker, prompt=None)
    assert found.request.image_uri == "s3://bucket/drop/accepted/anna/b.png"
    assert found.request.audio_uri == "s3://voices/a.wav"
    assert (found.request.prompt, found.request.preset, found.job_id) == ("Hello", "quick", "job-7")


@pytest.mark.parametrize(
    ("names", "marker", "prompt", "sentence"),
    [
        (["a.png", "b.png", "a.wav"], None, b"x", "2 files that may be its image ('a.png', 'b.png'): leave one"),
        (["a.png", "notes.txt"], None, b"x", "no audio file; there are: 'a.png', 'notes.txt'"),
        (["a.png", "a.wav"], None, None, "no prompt: expected the file prompt.txt"),
        (["a.png", "a.wav"], None, b"\xff\xfe\x00", "prompt.txt is not UTF-8"),
        (["a.png", "a.wav"], None, b"  \n", "prompt '': "),
        (["a.png", "a.wav"], b"{", b"x", "request.json is not JSON"),
        (["a.png", "a.wav"], b"[" * 60_000, b"x", "request.json is not JSON"),
        (["a.png", "a.wav"], b'{"base_seed": NaN}', b"x", "NaN is not a number of JSON"),
        (["a.png", "a.wav"], b'{"prompt": "x", "prompt": "y"}', b"x", "'prompt' is given more than once"),
        (["a.png", "a.wav"], [1], b"x", "is a JSON list"),
        (["a.png", "a.wav"], {"image_uri": "../../secret.png"}, b"x", "'../../secret.png' is no file of the folder"),
        (["a.png", "a.wav"], {"image_uri": 7}, b"x", "image_uri 7"),
        (["a.png", "a.wav"], {"job_id": "No Good"}, b"x", "job_id 'No Good': expected 3 to 63"),
        (["a.png", "a.wav"], {"sizes": "480*832"}, b"x", "sizes is not a field of a request"),
    ],
)
def test_what_makes_no_job_is_told_in_a_sentence(
    names: list[str], marker: Any, prompt: bytes | None, sentence: str
) -> None:
    """The offending name or value is in the message, and what to do."""
    with pytest.raises(PermanentError) as refused:
        request_of(folder(*names), marker, prompt)
    assert sentence in str(refused.value)


@pytest.mark.parametrize("size_bytes", [0, 1001])
def test_empty_and_large_files_are_refused_by_the_listing_alone(size_bytes: int) -> None:
    """Nothing is downloaded to find out."""
    (dropped,) = folders([listed("anna/a.png", size_bytes=size_bytes), listed("anna/a.wav")], INCOMING)
    with pytest.raises(PermanentError, match=f"'a.png' has {size_bytes} bytes: expected 1 to 1000"):
        request_of(dropped)


def test_a_job_id_is_that_of_these_files_in_this_folder() -> None:
    """Order of the listing and time of writing do not matter; other bytes, another name or folder do."""
    files = [listed("anna/a.png"), listed("anna/b.wav")]
    (first,), (turned,) = folders(files, INCOMING), folders(reversed(files), INCOMING)
    others = [
        folders([files[0], listed("anna/b.wav", etag="e2")], INCOMING)[0],
        folders([files[0], listed("anna/c.wav")], INCOMING)[0],
        folder("a.png", "b.wav", name="berta"),
    ]
    assert default_job_id(first) == default_job_id(turned)
    assert len({default_job_id(one) for one in [first, *others]}) == 4
    assert default_job_id(first).startswith("anna-")
    assert default_job_id(folder("a.png", name="🎬\n..")).startswith("drop-")


def test_folders_are_found_in_one_listing() -> None:
    """Files below a folder belong to it, also in folders of its own; what lies beside the folders is nobody's."""
    items = [listed("anna/"), listed("anna/a.png"), listed("anna/more/b.wav"), listed("stray.png"), listed("b/x.png")]
    assert {found.name: sorted(found.files) for found in folders(items, INCOMING)} == {
        "anna": ["a.png", "more/b.wav"],
        "b": ["x.png"],
    }


@pytest.mark.parametrize(
    ("names", "seconds", "ready"),
    [
        (["request.json"], 0, True),
        (["a.png", "a.wav", "prompt.txt"], 59, False),
        (["a.png", "a.wav", "prompt.txt"], 60, True),
        (["a.png", "prompt.txt"], 3599, False),
        (["a.png", "prompt.txt"], 3600, True),
    ],
)
def test_a_folder_is_ready_when_nobody_writes_in_it(names: list[str], seconds: int, ready: bool) -> None:
    """The marker says so at once; without it time does, more of it when something is missing."""
    now = WRITTEN + timedelta(seconds=seconds)
    assert folder(*names).is_ready(now, settle_seconds=60, abandoned_seconds=3600) is ready


@pytest.mark.parametrize(
    "name", ["my photo (1).PNG", "bild\n.png", "🎬.png", "..", "-x.png", "a" * 300 + ".png", "m/b.wav"]
)
def test_any_name_gets_a_plain_one(name: str) -> None:
    """What a URI or a path could misread is replaced; names that differ stay different."""
    plain = plain_name(name)
    assert plain.isascii()
    assert plain.replace("-", "").replace(".", "").isalnum()
    assert len(plain) < 100
    assert plain_name(name + "x") != plain != plain_name(name.upper() + " ")
    assert plain_name("portrait_1.png") == "portrait_1.png"
