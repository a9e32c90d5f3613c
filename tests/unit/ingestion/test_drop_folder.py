"""Check folders in the drop folder: kinds of files, readiness, and names of files."""

import hashlib
import re
from datetime import timedelta

import pytest

from s2v_tasks.ingestion.drop_folder import (
    folders,
    plain_name,
)
from s2v_tasks.storage.objects import ListedObject
from tests.unit.ingestion.drops import INCOMING, WRITTEN, folder, listed, request_of


@pytest.mark.parametrize(
    "suffix",
    [
        *("wav", "wave", "bwf", "w64", "rf64", "mp3", "flac", "ogg", "oga", "opus", "spx", "m4a", "m4b", "aac", "aif"),
        *("aiff", "aifc", "caf", "amr", "mka", "weba", "mp4", "m4v", "mov", "webm", "mkv", "3gp"),
    ],
)
def test_sound_and_video_files_are_speech(suffix: str) -> None:
    """A video is speech if there is no audio file; a pose video is not."""
    dropped = folder("me.jfif", f"Take.{suffix.upper()}", "pose.mov", "notes.docx")
    found = request_of(dropped).request
    assert found.audio_uri.endswith(f"/Take.{suffix.upper()}")
    assert found.pose_video_uri == "s3://bucket/drop/accepted/anna/pose.mov"


@pytest.mark.parametrize("suffix", ["png", "jpg", "jpeg", "jpe", "jfif", "webp"])
def test_pictures_are_recognised_by_their_suffixes(suffix: str) -> None:
    """Suffixes of readable picture formats are recognised."""
    assert request_of(folder("a.wav", f"Me.{suffix.upper()}")).request.image_uri.endswith(f"/Me.{suffix.upper()}")


DROPPINGS = [
    *("._a.png", ".DS_Store", ".hidden/b.png", "__MACOSX/a.png", "Thumbs.db", "thumbs.db:encryptable", "ehthumbs.db"),
    *("ehthumbs_vista.db", "Desktop.INI", "Icon\r", "@eaDir/a.png", "$RECYCLE.BIN/a.png", "~$talk.wav", "~lock.png"),
    *("System Volume Information/a.png", "a.png~", "#a.png#", "prompt.txt.bak", "a.png.orig", "a.png.swp", "b.swo"),
    *("pictures.png/", "..."),
]


@pytest.mark.parametrize("name", DROPPINGS)
def test_what_systems_leave_behind_is_ignored(name: str) -> None:
    """A file of macOS or Windows is no file of the drop: it counts neither for kind, identity nor age."""
    plain = folder("a.png", "a.wav", "prompt.txt")
    later = WRITTEN + timedelta(hours=9)
    items = [listed(f"anna/{file}") for file in plain.files] + [ListedObject(f"{INCOMING}/anna/{name}", 7, later, "e7")]
    (littered,) = folders(items, INCOMING)
    assert list(littered.ignored) == [name]
    assert (littered.files, littered.etag, littered.modified_at) == (plain.files, plain.etag, WRITTEN)
    assert request_of(littered) == request_of(plain)
    assert folders(items[3:], INCOMING) == []


@pytest.mark.parametrize("name", ["a.b.png", "desktop.ini.png", "bak.png", "thumbs.png", "x/..", ".", "..", "icon.png"])
def test_similar_names_of_users_are_not_ignored(name: str) -> None:
    """Names that only look like system files, and names that the store refuses, count as files."""
    assert list(folder(name).files) == [name]


def test_folders_are_found_in_one_listing() -> None:
    """Files in subfolders belong to their folder, and objects outside of folders to none."""
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
def test_a_folder_is_ready_after_its_last_write(names: list[str], seconds: int, ready: bool) -> None:
    """A folder is ready at once with its marker, else after a time, which is longer if a file is missing."""
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
    """Names of unfinished uploads of common programs are recognised."""
    assert folder("a.png", f"a.wav.{suffix}").unfinished == [f"a.wav.{suffix}"]
    assert folder("a.png", f"x.{suffix}/a.wav").unfinished == [f"x.{suffix}/a.wav"]


def test_a_folder_is_as_old_as_its_last_file() -> None:
    """The youngest file gives the age of a folder; the oldest folder comes first."""
    times = {"anna/a.png": 100, "anna/a.wav": 40, "anna/prompt.txt": 70, "berta/a.png": 90, "zoe/a.png": 20}
    items = [ListedObject(f"{INCOMING}/{n}", 10, WRITTEN + timedelta(seconds=s), "e") for n, s in times.items()]
    zoe, berta, anna = folders(items, INCOMING)
    assert [found.name for found in (zoe, berta, anna)] == ["zoe", "berta", "anna"]
    assert anna.modified_at == WRITTEN + timedelta(seconds=100)
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
    """Characters with a meaning in URLs or paths are replaced, and different names stay different."""
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
def test_a_plain_name_keeps_letters_and_suffix(name: str, plain: str) -> None:
    """A plain name has up to 60 letters and digits, a usual suffix, and the digest of the whole name."""
    assert plain_name(name) == plain.format(hashlib.sha256(name.encode()).hexdigest()[:8])


def test_names_that_no_encoding_holds_make_plain_names_and_digests() -> None:
    """A lone surrogate, as some clients send it for an emoji, gives a plain name and a digest."""
    name = "\ud83c.png"
    assert re.fullmatch(r"file-[0-9a-f]{8}\.png", plain_name(name))
    assert folder(name).etag != folder("\ud83d.png").etag


def test_folders_of_the_same_age_come_in_the_order_of_their_names() -> None:
    """Folders of equal age are sorted by name, whatever the order of the listing."""
    items = [listed(f"{name}/a.png") for name in ("carl", "anna", "berta")]
    assert [found.name for found in folders(items, INCOMING)] == ["anna", "berta", "carl"]
