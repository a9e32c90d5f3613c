"""From dropped files to a request: what may be left out, what is refused, and in which words."""

import hashlib
import json
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from s2v_tasks.errors import PermanentError
from s2v_tasks.ingestion.drop_folder import (
    DropFolder,
    DropRequest,
    DropTexts,
    default_job_id,
    folders,
    plain_name,
    request_of_drop,
)
from s2v_tasks.storage.objects import ListedObject

INCOMING = "s3://bucket/drop/incoming"
# "Größe é" as macOS writes it, as others do, and half of each.
NFC, NFD, MIXED = "Gr\u00f6\u00dfe \u00e9", "Gro\u0308\u00dfe e\u0301", "Gro\u0308\u00dfe \u00e9"
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
        (["a.png", "a.mp4", "b.MOV"], None, b"x", "2 files that may be its audio ('a.mp4', 'b.MOV'): leave one"),
        (["a.png", "pose.mp4"], None, b"x", "no audio file; there are: 'a.png', 'pose.mp4'"),
        (["a.png", "a.wav", "pose.mp4.part"], None, b"x", "'pose.mp4.part': an upload that was not finished"),
        (["a.png", "a.wav", "x.png.download/x.png"], None, b"x", "'x.png.download/x.png': an upload that was not"),
        (["a.png", "in/a.wav"], {"audio_uri": "in/"}, b"x", "audio_uri 'in/' is a folder, not a file"),
        (["a.png", "in/a.wav"], {"audio_uri": "in"}, b"x", "audio_uri 'in' is a folder, not a file"),
        (["a.png", ".a.wav"], {"audio_uri": ".a.wav"}, b"x", "audio_uri '.a.wav' is ignored, as a hidden, temporary"),
        ([f"{NFC}.png", f"{NFD}.png"], {"image_uri": f"{MIXED}.png"}, b"x", "means 2 files whose names differ only"),
        (["a.png", "a.wav"], b'{"num_clip": true}', b"x", "num_clip True: expected a number"),
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
def test_a_folder_without_a_job_is_refused_in_a_sentence(
    names: list[str], marker: Any, prompt: bytes | None, sentence: str
) -> None:
    """The offending name or value is in the message, and what to do."""
    with pytest.raises(PermanentError) as refused:
        request_of(folder(*names), marker, prompt)
    assert sentence in str(refused.value)


@pytest.mark.parametrize(("given", "stored"), [(NFC, NFD), (NFD, NFC), (MIXED, NFC), (NFC, MIXED), (NFC, NFC)])
def test_a_name_finds_its_file_in_another_normal_form(given: str, stored: str) -> None:
    """macOS hands file names over in a form of its own; the file beside it has another name."""
    dropped = folder(f"{stored}.png", "b.png", "a.wav")
    found = request_of(dropped, {"image_uri": f"{given}.png"})
    assert found.request.image_uri == f"s3://bucket/drop/accepted/anna/{plain_name(f'{stored}.png')}"


def test_of_two_normal_forms_the_one_that_is_named_is_taken() -> None:
    """An exact name is not ambiguous."""
    dropped = folder(f"{NFC}.png", f"{NFD}.png", "a.wav")
    for name in (f"{NFC}.png", f"{NFD}.png"):
        assert request_of(dropped, {"image_uri": name}).request.image_uri.endswith(plain_name(name))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be"])
def test_small_files_may_have_any_encoding_of_unicode(encoding: str) -> None:
    """Windows writes a byte order mark and UTF-16."""
    dropped = folder("a.png", "a.wav")
    assert request_of(dropped, '{"prompt": "Grüße"}'.encode(encoding), None).request.prompt == "Grüße"
    assert request_of(dropped, None, "Grüße\r\n".encode(encoding)).request.prompt == "Grüße"


@pytest.mark.parametrize(
    "suffix",
    [
        *("wav", "wave", "bwf", "w64", "rf64", "mp3", "flac", "ogg", "oga", "opus", "spx", "m4a", "m4b", "aac", "aif"),
        *("aiff", "aifc", "caf", "amr", "mka", "weba", "mp4", "m4v", "mov", "webm", "mkv", "3gp"),
    ],
)
def test_sound_and_video_files_are_speech(suffix: str) -> None:
    """A phone's recording is speech when nothing else is; a pose video is none."""
    dropped = folder("me.jfif", f"Take.{suffix.upper()}", "pose.mov", "notes.docx")
    found = request_of(dropped).request
    assert found.audio_uri.endswith(f"/Take.{suffix.upper()}")
    assert found.pose_video_uri == "s3://bucket/drop/accepted/anna/pose.mov"


@pytest.mark.parametrize("suffix", ["png", "jpg", "jpeg", "jpe", "jfif", "webp"])
def test_pictures_are_recognised_by_their_suffixes(suffix: str) -> None:
    """Those that can be read."""
    assert request_of(folder("a.wav", f"Me.{suffix.upper()}")).request.image_uri.endswith(f"/Me.{suffix.upper()}")


@pytest.mark.parametrize("suffix", ["mp4", "m4v", "mov", "webm", "mkv", "3gp"])
def test_a_video_beside_a_sound_file_is_no_speech(suffix: str) -> None:
    """A video called pose guides the body, another one is left alone."""
    dropped = folder("a.png", "talk.wav", f"making-of.{suffix}", f"POSE.{suffix}")
    found = request_of(dropped).request
    assert found.audio_uri.endswith("/talk.wav")
    assert str(found.pose_video_uri).endswith(f"/POSE.{suffix}")


DROPPINGS = [
    *("._a.png", ".DS_Store", ".hidden/b.png", "__MACOSX/a.png", "Thumbs.db", "thumbs.db:encryptable", "ehthumbs.db"),
    *("ehthumbs_vista.db", "Desktop.INI", "Icon\r", "@eaDir/a.png", "$RECYCLE.BIN/a.png", "~$talk.wav", "~lock.png"),
    *("System Volume Information/a.png", "a.png~", "#a.png#", "prompt.txt.bak", "a.png.orig", "a.png.swp", "b.swo"),
    *("pictures.png/", "..."),
]


@pytest.mark.parametrize("name", DROPPINGS)
def test_what_systems_leave_behind_is_ignored(name: str) -> None:
    """It is no file of the drop, neither for its kind nor for its identity or its age, and no drop by itself."""
    plain = folder("a.png", "a.wav", "prompt.txt")
    later = WRITTEN + timedelta(hours=9)
    items = [listed(f"anna/{file}") for file in plain.files] + [ListedObject(f"{INCOMING}/anna/{name}", 7, later, "e7")]
    (littered,) = folders(items, INCOMING)
    assert list(littered.ignored) == [name]
    assert (littered.files, littered.etag, littered.handed_in_at) == (plain.files, plain.etag, WRITTEN)
    assert request_of(littered) == request_of(plain)
    assert folders(items[3:], INCOMING) == []


@pytest.mark.parametrize("name", ["a.b.png", "desktop.ini.png", "bak.png", "thumbs.png", "x/..", ".", "..", "icon.png"])
def test_files_of_people_are_no_droppings(name: str) -> None:
    """Names that only look alike, and names that the store will refuse, count."""
    assert list(folder(name).files) == [name]


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
        folders([files[0], listed("anna/b.wav", size_bytes=11)], INCOMING)[0],
        folders([files[0], listed("anna/c.wav")], INCOMING)[0],
        folder("a.png", "b.wav", name="berta"),
    ]
    assert default_job_id(first) == default_job_id(turned)
    assert len({default_job_id(one) for one in [first, *others]}) == 5
    assert re.fullmatch(r"[0-9a-f]{32}", first.etag)
    assert re.fullmatch(r"anna-[0-9a-f]{8}", default_job_id(first))
    assert default_job_id(folder("a.png", name="🎬\n..")).startswith("drop-")


def test_folders_are_found_in_one_listing() -> None:
    """Files below a folder belong to it, also in subfolders; objects outside folders belong to none."""
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
        (["a.png", "a.wav"], 3599, False),
        (["a.wav", "prompt.txt"], 3599, False),
        (["a.png", "a.mp4", "prompt.txt"], 60, True),
        (["a.png", "a.wav", "prompt.txt", "a.wav.part"], 3599, False),
        (["a.png", "a.wav", "prompt.txt", "a.wav.part"], 3600, True),
        (["request.json", "a.wav.crdownload"], 3599, False),
        (["request.json", "a.wav.crdownload"], 3600, True),
    ],
)
def test_a_folder_is_ready_when_nobody_writes_in_it(names: list[str], seconds: int, ready: bool) -> None:
    """The marker says so at once; without it time does, more of it when something is missing."""
    now = WRITTEN + timedelta(seconds=seconds)
    assert folder(*names).is_ready(now, settle_seconds=60, abandoned_seconds=3600) is ready


@pytest.mark.parametrize(
    "suffix",
    [
        *("part", "partial", "filepart", "crdownload", "opdownload", "download", "tmp", "temp", "upload", "uploading"),
        *("incomplete", "aria2", "!ut", "PART"),
    ],
)
def test_an_unfinished_upload_is_waited_for(suffix: str) -> None:
    """The names of unfinished uploads of many programs are known."""
    assert folder("a.png", f"a.wav.{suffix}").unfinished == [f"a.wav.{suffix}"]
    assert folder("a.png", f"x.{suffix}/a.wav").unfinished == [f"x.{suffix}/a.wav"]


def test_a_folder_is_as_old_as_its_last_file() -> None:
    """One that is still written in is not taken, whatever the others of its files are; the oldest comes first."""
    times = {"anna/a.png": 100, "anna/a.wav": 40, "anna/prompt.txt": 70, "berta/a.png": 90, "zoe/a.png": 20}
    items = [ListedObject(f"{INCOMING}/{n}", 10, WRITTEN + timedelta(seconds=s), "e") for n, s in times.items()]
    zoe, berta, anna = folders(items, INCOMING)
    assert [found.name for found in (zoe, berta, anna)] == ["zoe", "berta", "anna"]
    assert anna.handed_in_at == WRITTEN + timedelta(seconds=100)
    ready = [
        anna.is_ready(WRITTEN + timedelta(seconds=at), settle_seconds=60, abandoned_seconds=3600) for at in (159, 160)
    ]
    assert ready == [False, True]


@pytest.mark.parametrize(
    "name",
    [
        "my photo (1).PNG",
        "bild\n.png",
        "🎬.png",
        "..",
        "-x.png",
        "a" * 300 + ".png",
        "m/b.wav",
        "photo.my file",
        "a.suffix",
    ],
)
def test_any_name_gets_a_plain_one(name: str) -> None:
    """Characters with a meaning in a URI or a path are replaced; different names stay different."""
    plain = plain_name(name)
    assert plain.isascii()
    assert plain.replace("-", "").replace(".", "").isalnum()
    assert len(plain) < 100
    assert plain_name(name + "x") != plain != plain_name(name.upper() + " ")
    assert plain_name("portrait_1.png") == "portrait_1.png"


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("my photo (1).PNG", "my-photo-1-{}.png"),
        ("\N{CLAPPER BOARD}.png", "file-{}.png"),
        ("-x-.png", "x-{}.png"),
        ("a" * 300 + ".png", "a" * 60 + "-{}.png"),
        ("two words.sixlet", "two-words-{}"),
        ("two words.jpegs", "two-words-{}.jpegs"),
        ("two words.", "two-words-{}"),
        ("a" * 81, "a" * 60 + "-{}"),
        ("a" * 80, "a" * 80),
        ("Z0._-", "Z0._-"),
    ],
)
def test_a_plain_name_keeps_what_people_recognise(name: str, plain: str) -> None:
    """Keep up to 60 letters and digits and a usual ending; the digest of the whole name keeps names apart."""
    assert plain_name(name) == plain.format(hashlib.sha256(name.encode()).hexdigest()[:8])


def test_names_that_no_encoding_holds_make_plain_names_and_digests() -> None:
    """Accept the half of a pair that some clients send for an emoji."""
    name = "\ud83c.png"
    assert re.fullmatch(r"file-[0-9a-f]{8}\.png", plain_name(name))
    assert folder(name).etag != folder("\ud83d.png").etag


def test_a_video_is_no_picture() -> None:
    """Take a video for the speech of a folder, and never for its image."""
    dropped = folder("talk.mp4", "pose.mp4", "prompt.txt")
    assert [dropped.named(kind) for kind in ("image", "audio", "pose")] == [[], ["talk.mp4"], ["pose.mp4"]]


def test_folders_of_the_same_age_come_in_the_order_of_their_names() -> None:
    """Sort by name where the last files were written at the same time, whatever the order of the listing is."""
    items = [listed(f"{name}/a.png") for name in ("carl", "anna", "berta")]
    assert [found.name for found in folders(items, INCOMING)] == ["anna", "berta", "carl"]
