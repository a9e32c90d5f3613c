"""Check media for players: ranges, caching, pictures and waveforms."""

import io
import urllib.request

import pytest
from PIL import Image

from s2v_tasks.metadata.store import MetadataStore
from s2v_tasks.settings import load_settings
from s2v_tasks.storage import objects
from s2v_tasks.storage.s3 import ObjectStore
from s2v_tasks.web.services import services
from tests.web.conftest import Login
from tests.web.sample_job import add_job, record

CLIP = bytes(range(256)) * 40


@pytest.fixture
def clip_address(metadata: MetadataStore, store: ObjectStore) -> str:
    """The address of a stored clip."""
    store.put_bytes(add_job(metadata, store, "talk").clip(1), CLIP, "text/html")
    return "/s2v/job/talk/clips/1.mp4"


@pytest.mark.parametrize(
    ("asked", "status", "content", "content_range"),
    [
        ("bytes=0-99", 206, CLIP[:100], f"bytes 0-99/{len(CLIP)}"),
        ("bytes=100-", 206, CLIP[100:], f"bytes 100-{len(CLIP) - 1}/{len(CLIP)}"),
        ("bytes=-10", 206, CLIP[-10:], f"bytes {len(CLIP) - 10}-{len(CLIP) - 1}/{len(CLIP)}"),
        ("bytes=0-1,5-6", 200, CLIP, None),
        ("lines=1-2", 200, CLIP, None),
        (f"bytes={len(CLIP)}-", 416, b"", None),
    ],
)
def test_a_player_gets_the_range_that_it_asks_for(
    login: Login, clip_address: str, asked: str, status: int, content: bytes, content_range: str | None
) -> None:
    """One range answers 206 with its bytes; anything else is the whole object, as HTTP requires."""
    answer = login("vera").get(clip_address, headers={"Range": asked})
    assert (answer.status_code, answer.content) == (status, content)
    assert answer.headers.get("content-range") == content_range
    if status != 416:
        assert answer.headers["content-type"] == "video/mp4"
        assert answer.headers["content-length"] == str(len(content))
        assert answer.headers["accept-ranges"] == "bytes"


def test_an_open_range_is_answered_in_parts(login: Login, clip_address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A range without an end gets a part, so that no answer holds a connection for minutes."""
    monkeypatch.setattr(objects, "MAX_RANGE_BYTES", 1000)
    answer = login("vera").get(clip_address, headers={"Range": "bytes=0-"})
    assert (answer.status_code, len(answer.content)) == (206, 1000)
    assert answer.headers["content-range"] == f"bytes 0-999/{len(CLIP)}"


@pytest.mark.parametrize(("accepted", "encoding"), [("identity;q=1, *;q=0", None), ("gzip, br", "identity")])
def test_a_player_gets_no_encoding(login: Login, clip_address: str, accepted: str, encoding: str | None) -> None:
    """Media are never compressed, and a player, which accepts no gzip, gets no header that Firefox cannot seek with."""
    for headers in ({}, {"Range": "bytes=0-"}):
        answer = login("vera").get(clip_address, headers={"Accept-Encoding": accepted} | headers)
        assert answer.headers.get("content-encoding") == encoding
        assert answer.content == CLIP


def test_an_unchanged_clip_is_not_sent_again(login: Login, clip_address: str) -> None:
    """The ETag of a clip answers 304; a new clip has another ETag."""
    browser = login("vera")
    etag = browser.get(clip_address).headers["etag"]
    again = browser.get(clip_address, headers={"If-None-Match": etag})
    assert (again.status_code, again.content) == (304, b"")
    services().store.put_bytes("jobs/talk/clips/0001/clip.mp4", b"another", "video/mp4")
    assert browser.get(clip_address, headers={"If-None-Match": etag}).content == b"another"


def test_the_whole_video_can_be_played_before_it_is_published(
    login: Login, metadata: MetadataStore, store: ObjectStore
) -> None:
    """The joined video is shown once it is recorded, and is downloaded under a name of its own."""
    layout = add_job(metadata, store, "talk")
    browser = login("vera")
    assert browser.get("/s2v/job/talk/video.mp4").status_code == 404
    record(metadata, "talk", "mux_audio", {"muxed": store.put_bytes(layout.muxed, b"joined", "video/mp4")})
    assert browser.get("/s2v/job/talk/video.mp4").content == b"joined"
    download = browser.get("/s2v/job/talk/download/video")
    assert download.content == b"joined"
    assert download.headers["content-disposition"] == 'attachment; filename="talk.mp4"'


def test_a_player_is_redirected_to_the_store_if_configured(
    login: Login, clip_address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With S2V_VIDEO_DELIVERY=redirect the link reads the object for a quarter of an hour."""
    monkeypatch.setenv("S2V_VIDEO_DELIVERY", "redirect")
    load_settings.cache_clear()
    services.cache_clear()
    answer = login("vera").get(clip_address)
    assert (answer.status_code, answer.headers["cache-control"]) == (307, "private, no-store")
    assert "X-Amz-Expires=900" in answer.headers["location"]
    with urllib.request.urlopen(answer.headers["location"]) as file:  # noqa: S310 - the store of this test
        assert file.read() == CLIP


@pytest.mark.parametrize("name", ["poster.jpg", "reference.jpg"])
def test_without_a_frame_the_poster_is_the_small_reference_picture(
    login: Login, metadata: MetadataStore, store: ObjectStore, name: str
) -> None:
    """The poster is a JPEG of at most 480 pixels that browsers cache for a short time."""
    add_job(metadata, store, "talk")
    answer = login("vera").get(f"/s2v/job/talk/{name}")
    with Image.open(io.BytesIO(answer.content)) as picture:
        assert (picture.format, picture.size) == ("JPEG", (320, 480))
    seconds = {"poster.jpg": 60, "reference.jpg": 3600}[name]
    assert answer.headers["cache-control"] == f"private, max-age={seconds}"


def test_the_poster_is_a_frame_as_soon_as_a_clip_is_stored(
    login: Login, metadata: MetadataStore, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The API server sends the stored frame, also if players are redirected to the store, and browsers cache it."""
    monkeypatch.setenv("S2V_VIDEO_DELIVERY", "redirect")
    load_settings.cache_clear()
    services.cache_clear()
    layout, browser = add_job(metadata, store, "talk"), login("vera")
    store.put_bytes(layout.poster, b"a frame", "text/html")
    answer = browser.get("/s2v/job/talk/poster.jpg?v=1")
    assert (answer.status_code, answer.content) == (200, b"a frame")
    assert (answer.headers["content-type"], answer.headers["cache-control"]) == ("image/jpeg", "private, max-age=3600")
    again = browser.get("/s2v/job/talk/poster.jpg?v=1", headers={"If-None-Match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert browser.get("/s2v/job/talk/reference.jpg").content != b"a frame"


def test_the_waveform_shows_where_speech_is_loud(login: Login, metadata: MetadataStore, store: ObjectStore) -> None:
    """The peaks go from 0 for silence to 100 for full loudness, at equal distances in time."""
    add_job(metadata, store, "talk", num_clip=30)
    peaks = login("vera").get("/s2v/job/talk/waveform.json").json()
    half = len(peaks) // 2
    assert 790 <= len(peaks) <= 800
    assert (set(peaks[: half - 2]), set(peaks[half + 2 :])) == ({0}, {100})


def test_files_that_are_not_stored_yet_are_not_found(login: Login, metadata: MetadataStore, store: ObjectStore) -> None:
    """A clip that is not rendered, and files of a job that does not exist, answer 404."""
    add_job(metadata, store, "talk")
    browser = login("vera")
    for address in ("talk/clips/0.mp4", "none/poster.jpg", "none/waveform.json", "none/speech.wav", "none/video.mp4"):
        assert browser.get(f"/s2v/job/{address}").status_code == 404
