"""Check the request of dropped files: defaults, refusals and messages."""

import re
from typing import Any

import pytest

from s2v_tasks.errors import PermanentError
from s2v_tasks.ingestion.drop_folder import (
    default_job_id,
    folders,
    plain_name,
)
from tests.unit.ingestion.drops import INCOMING, folder, listed, request_of

# "Größe é" as macOS writes it, as others do, and half of each.
NFC, NFD, MIXED = "Gr\u00f6\u00dfe \u00e9", "Gro\u0308\u00dfe e\u0301", "Gro\u0308\u00dfe \u00e9"


def test_a_folder_of_a_person_needs_no_request_file() -> None:
    """The only image, the only audio and prompt.txt make a request, whose files are at the target."""
    found = request_of(folder("me.JPG", "talk.mp3", "prompt.txt", "pose.mp4", "notes.docx"))
    assert found.request.image_uri == "s3://bucket/drop/accepted/anna/me.JPG"
    assert found.request.audio_uri == "s3://bucket/drop/accepted/anna/talk.mp3"
    assert found.request.pose_video_uri == "s3://bucket/drop/accepted/anna/pose.mp4"
    assert found.request.prompt == "A person speaks."


def test_a_request_file_names_files_of_the_folder_or_objects_elsewhere() -> None:
    """A plain name is a file of the folder, a full URI is used as it is, and other fields are those of a request."""
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


def test_an_empty_field_of_a_request_file_is_one_that_is_left_out() -> None:
    """A null field has its default, like an omitted one."""
    names = ("a.png", "a.wav", "prompt.txt", "request.json")
    empty = dict.fromkeys(["preset", "priority", "job_id", "prompt", "image_uri", "pose_video_uri", "size"])
    assert request_of(folder(*names), empty) == request_of(folder(*names), {})


@pytest.mark.parametrize(
    ("names", "marker", "prompt", "sentence"),
    [
        (["a.png", "b.png", "a.wav"], None, b"x", "2 files that may be its image ('a.png', 'b.png'): keep only one"),
        (
            ["a.png", "notes.txt"],
            None,
            b"x",
            "no audio file; there are: 'a.png', 'notes.txt'. Expected a name that ends",
        ),
        (
            ["a.heic", "a.wav"],
            None,
            b"x",
            "no image file; there are: 'a.heic', 'a.wav'. Expected a name that ends with .j",
        ),
        (["a.png", "a.mp4", "b.MOV"], None, b"x", "2 files that may be its audio ('a.mp4', 'b.MOV'): keep only one"),
        (["a.png", "pose.mp4"], None, b"x", "no audio file; there are: 'a.png', 'pose.mp4'"),
        (["a.png", "a.wav", "pose.mp4.part"], None, b"x", "'pose.mp4.part': an unfinished upload"),
        (["a.png", "a.wav", "x.png.download/x.png"], None, b"x", "'x.png.download/x.png': an unfinished upload"),
        (["a.png", "in/a.wav"], {"audio_uri": "in/"}, b"x", "audio_uri 'in/' is a folder, not a file"),
        (["a.png", "in/a.wav"], {"audio_uri": "in"}, b"x", "audio_uri 'in' is a folder, not a file"),
        (["a.png", ".a.wav"], {"audio_uri": ".a.wav"}, b"x", "audio_uri '.a.wav' is ignored, as a hidden, temporary"),
        ([f"{NFC}.png", f"{NFD}.png"], {"image_uri": f"{MIXED}.png"}, b"x", "matches 2 files whose names differ only"),
        (["a.png", "a.wav"], b'{"num_clip": true}', b"x", "num_clip True: expected a number"),
        (["a.png", "a.wav"], None, None, "no prompt: expected the file prompt.txt"),
        (["a.png", "a.wav"], None, b"\xff\xfe\x00", "prompt.txt is not UTF-8"),
        (["a.png", "a.wav"], None, b"  \n", "prompt '': "),
        (["a.png", "a.wav"], b"{", b"x", "request.json is not JSON"),
        (["a.png", "a.wav"], b"[" * 60_000, b"x", "request.json is not JSON"),
        (["a.png", "a.wav"], b'{"base_seed": NaN}', b"x", "NaN is not a number of JSON"),
        (["a.png", "a.wav"], b'{"prompt": "x", "prompt": "y"}', b"x", "'prompt' is given more than once"),
        (["a.png", "a.wav"], [1], b"x", "is a JSON list"),
        (["a.png", "a.wav"], {"image_uri": "../../secret.png"}, b"x", "'../../secret.png' is not a file of the folder"),
        (["a.png", "a.wav"], {"image_uri": 7}, b"x", "image_uri 7"),
        (["a.png", "a.wav"], {"job_id": "No Good"}, b"x", "job_id 'No Good': expected 3 to 63"),
        (["a.png", "a.wav"], {"sizes": "480*832"}, b"x", "sizes is not a field of a request"),
    ],
)
def test_a_folder_without_a_job_is_refused_in_a_sentence(
    names: list[str], marker: Any, prompt: bytes | None, sentence: str
) -> None:
    """The message has the wrong name or value and the remedy."""
    with pytest.raises(PermanentError) as refused:
        request_of(folder(*names), marker, prompt)
    assert sentence in str(refused.value)


@pytest.mark.parametrize(("given", "stored"), [(NFC, NFD), (NFD, NFC), (MIXED, NFC), (NFC, MIXED), (NFC, NFC)])
def test_a_name_finds_its_file_in_another_normal_form(given: str, stored: str) -> None:
    """A name in the normal form of macOS finds a file that is stored in another form."""
    dropped = folder(f"{stored}.png", "b.png", "a.wav")
    found = request_of(dropped, {"image_uri": f"{given}.png"})
    assert found.request.image_uri == f"s3://bucket/drop/accepted/anna/{plain_name(f'{stored}.png')}"


def test_of_two_normal_forms_the_one_that_is_named_is_taken() -> None:
    """The exact name is used if files in both forms exist."""
    dropped = folder(f"{NFC}.png", f"{NFD}.png", "a.wav")
    for name in (f"{NFC}.png", f"{NFD}.png"):
        assert request_of(dropped, {"image_uri": name}).request.image_uri.endswith(plain_name(name))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be"])
def test_small_files_may_have_any_encoding_of_unicode(encoding: str) -> None:
    """Texts with a byte order mark and in UTF-16, as Windows writes them, are read."""
    dropped = folder("a.png", "a.wav")
    assert request_of(dropped, '{"prompt": "Grüße"}'.encode(encoding), None).request.prompt == "Grüße"
    assert request_of(dropped, None, "Grüße\r\n".encode(encoding)).request.prompt == "Grüße"


@pytest.mark.parametrize("suffix", ["mp4", "m4v", "mov", "webm", "mkv", "3gp"])
def test_a_video_beside_a_sound_file_is_no_speech(suffix: str) -> None:
    """A video called pose is the pose video; another video is ignored."""
    dropped = folder("a.png", "talk.wav", f"making-of.{suffix}", f"POSE.{suffix}")
    found = request_of(dropped).request
    assert found.audio_uri.endswith("/talk.wav")
    assert str(found.pose_video_uri).endswith(f"/POSE.{suffix}")


@pytest.mark.parametrize("size_bytes", [0, 1001])
def test_empty_and_large_files_are_refused_by_the_listing_alone(size_bytes: int) -> None:
    """Sizes are checked without a download."""
    (dropped,) = folders([listed("anna/a.png", size_bytes=size_bytes), listed("anna/a.wav")], INCOMING)
    with pytest.raises(PermanentError, match=f"'a.png' has {size_bytes} bytes: expected 1 to 1000"):
        request_of(dropped)


def test_a_job_id_is_that_of_these_files_in_this_folder() -> None:
    """Order and time of files do not matter; other bytes, another name or another folder give another id."""
    files = [listed("anna/a.png"), listed("anna/b.wav")]
    (first,), (turned,) = folders(files, INCOMING), folders(reversed(files), INCOMING)
    others = [
        folders([files[0], listed("anna/b.wav", etag="e2")], INCOMING)[0],
        folders([files[0], listed("anna/b.wav", size_bytes=11)], INCOMING)[0],
        folders([files[0], listed("anna/c.wav")], INCOMING)[0],
        folder("a.png", "b.wav", name="berta"),
    ]
    assert default_job_id(first) == default_job_id(turned)
    assert len({default_job_id(one) for one in [first, *others]}) == 5
    assert re.fullmatch(r"[0-9a-f]{32}", first.etag)
    assert re.fullmatch(r"anna-[0-9a-f]{8}", default_job_id(first))
    assert default_job_id(folder("a.png", name="🎬\n..")).startswith("drop-")


def test_a_video_is_no_picture() -> None:
    """A video may be the speech of a folder, but not its image."""
    dropped = folder("talk.mp4", "pose.mp4", "prompt.txt")
    assert [dropped.named(kind) for kind in ("image", "audio", "pose")] == [[], ["talk.mp4"], ["pose.mp4"]]


@pytest.mark.parametrize(("size_bytes", "accepted"), [(0, False), (1, True), (1000, True), (1001, False)])
def test_files_of_a_drop_have_bounds(size_bytes: int, accepted: bool) -> None:
    """An empty file and one above the limit are refused by name; the limits themselves are allowed."""
    items = [listed("anna/a.png"), listed("anna/a.wav", size_bytes=size_bytes)]
    (dropped,) = folders(items, INCOMING)
    if accepted:
        assert request_of(dropped).request.audio_uri.endswith("/a.wav")
        return
    with pytest.raises(PermanentError, match=rf"'a\.wav' has {size_bytes} bytes: expected 1 to 1000"):
        request_of(dropped)


@pytest.mark.parametrize(("count", "end"), [(10, "'09.txt'. Expected"), (11, "'09.txt' and 1 more. Expected")])
def test_a_refusal_names_ten_files(count: int, end: str) -> None:
    """The message has ten names and the number of the others."""
    with pytest.raises(PermanentError) as refused:
        request_of(folder(*(f"{number:02}.txt" for number in range(count))))
    assert f"'08.txt', {end}" in str(refused.value)
