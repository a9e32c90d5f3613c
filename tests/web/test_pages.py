"""Check the content of the pages: gallery with filters, page of a job, tab of a run."""

import re
from datetime import UTC, datetime, timedelta

import pytest

from s2v_tasks.metadata.store import MetadataStore
from s2v_tasks.schemas.quality import ClipQuality, FaceQuality, Finding, LipSyncQuality, LookQuality, Take, TakeRecord
from s2v_tasks.storage.s3 import ObjectStore
from s2v_tasks.web.pages import age, duration, money
from tests.web.conftest import Login
from tests.web.sample_job import REQUEST, add_job, plan_of


@pytest.fixture
def _three_jobs(metadata: MetadataStore) -> None:
    """Add three jobs: `news-1` has failed, `news-2` and `shop-1` wait."""
    metadata.jobs.enqueue("news-1", REQUEST | {"labels": {"team": "news"}, "prompt": "The Weather."})
    metadata.jobs.enqueue("news-2", REQUEST | {"labels": {"team": "news"}, "prompt": "100% sport_news."})
    metadata.jobs.enqueue("shop-1", REQUEST | {"labels": {"team": "shop"}, "prompt": "A product."})
    metadata.jobs.fail("news-1", "No.")


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", ["shop-1", "news-2", "news-1"]),
        ("status=failed", ["news-1"]),
        ("label=team%3Dnews", ["news-2", "news-1"]),
        ("text=weather", ["news-1"]),
        ("text=shop-", ["shop-1"]),
        ("text=100%25", ["news-2"]),
        ("text=sport_", ["news-2"]),
        ("text=_", ["news-2"]),
        ("status=nonsense&source=nonsense&label=nonsense", ["shop-1", "news-2", "news-1"]),
        ("text=nothing", []),
    ],
)
@pytest.mark.usefixtures("_three_jobs")
def test_the_gallery_is_filtered(login: Login, query: str, expected: list[str]) -> None:
    """The gallery filters by state, label and text, newest first; SQL wildcards match themselves."""
    text = login("vera").get(f"/s2v/videos?{query}").text
    assert re.findall(r'data-job="([^"]+)"', text) == expected


def test_a_wrong_page_is_refused(login: Login) -> None:
    """A changed cursor is a bad request and no error of the server."""
    for cursor in ("x", "W10", "bnVsbA", "WyIyMDI2IiwgMV0x"):
        assert login("vera").get(f"/s2v/videos?after={cursor}").status_code == 400


def test_a_page_shows_why_a_job_failed(login: Login, metadata: MetadataStore, store: ObjectStore) -> None:
    """The page has the reason with its remedy, the warnings of the plan, and the events as sentences."""
    add_job(metadata, store, "talk")
    metadata.clips.start("talk", 0, "f" * 64)
    metadata.jobs.fail("talk", "The GPU was lost: start the job again.")
    text = login("vera").get("/s2v/job/talk").text
    for sentence in ("This video failed", "The GPU was lost: start the job again.", "The speech is quiet."):
        assert sentence in text
    assert "Clip 1 started, attempt 1" in text
    assert "Planned: 2 clips, 32 frames, 128 × 192" in text
    assert "The GPU was lost: start the job again." in login("vera").get("/s2v/videos").text


@pytest.mark.parametrize(("num_samples", "width"), [(32_000, "800.0"), (160_000, "160.0")])
def test_the_waveform_ends_with_the_video(
    login: Login, metadata: MetadataStore, store: ObjectStore, num_samples: int, width: str
) -> None:
    """A preview of 2 s shows the first 2 s of the speech above its clips."""
    layout = add_job(metadata, store, "talk")
    plan = plan_of("talk", 2)
    plan = plan.model_copy(update={"speech": plan.speech.model_copy(update={"num_samples": num_samples})})
    store.put_bytes(layout.plan, plan.model_dump_json().encode(), "application/json")
    assert f'viewBox="0 0 {width} 100"' in login("vera").get("/s2v/job/talk").text


def test_clips_of_a_rerun_count_from_1_everywhere(login: Login, metadata: MetadataStore, store: ObjectStore) -> None:
    """Facts and request name the same first clip, and a job that is not planned shows only its preset."""
    metadata.jobs.enqueue("talk", REQUEST)
    add_job(metadata, store, "talk-2", parent_job_id="talk", from_clip=1)
    metadata.jobs.enqueue("later", REQUEST | {"preset": "high"})
    text = login("vera").get("/s2v/job/talk-2").text
    assert "</a> from clip 2</dd>" in text
    assert '<dt>Rerun from clip</dt><dd dir="auto">2</dd>' in text
    cards = login("vera").get("/s2v/videos").text
    feet = re.findall(r'<span class="cost">.*</span>\s*<span class="muted">(.*)</span>', cards)
    assert feet == ["high", "2 clips · balanced · rerun", ""]


def test_quality_of_a_clip_is_shown(login: Login, metadata: MetadataStore, store: ObjectStore) -> None:
    """The page has the result of the kept take, its findings in words, and the number of takes."""
    add_job(metadata, store, "talk")
    face = FaceQuality(
        share_of_frames=1.0,
        longest_gap_frames=0,
        most_faces=1,
        height_ratio=1.0,
        shape_difference=0.01,
        blinks_per_minute=12.0,
        head_motion=0.1,
    )
    lip_sync = LipSyncQuality(
        lag_ms=-31.0,
        correlation=0.8,
        other_correlation=0.1,
        speech_share=0.9,
        opening_range=0.2,
        silent_opening_range=0.0,
    )
    look = LookQuality(skin_difference=1.0, background_difference=1.0, contrast_ratio=1.0, sharpness_ratio=0.6)
    measured = ClipQuality(start_frame=0, end_frame=16, face=face, lip_sync=lip_sync, look=look, seam=None)
    finding = Finding(level="warn", measure="sharpness", message="The face is <soft>.", penalty=0.2)
    takes = (
        Take(take=0, seed=7, fingerprint="a" * 64, measured=measured, measure_seconds=1.0),
        Take(take=1, seed=8, fingerprint="b" * 64, measured=measured, findings=(finding,), measure_seconds=1.0),
    )
    metadata.clips.record_quality("talk", TakeRecord(clip_index=0, fingerprint="a" * 64, takes=takes, kept=1))
    text = login("vera").get("/s2v/job/talk").text
    for part in ("2 takes", "-31 ms", 'class="badge warn"', "The face is &lt;soft&gt;."):
        assert part in text


def test_the_tab_of_a_run_leads_to_its_job(login: Login, metadata: MetadataStore) -> None:
    """A run leads to the job that recorded it; a run of another DAG has no video, an unknown one is not found."""
    metadata.jobs.enqueue("talk", REQUEST, dag_run_id="manual__2026-11-22T10:15:30+00:00")
    browser = login("vera")
    found = browser.get(
        "/s2v/videos/of-run", params={"dag_id": "speech_to_video", "run_id": "manual__2026-11-22T10:15:30+00:00"}
    )
    assert (found.status_code, found.headers["location"]) == (303, "../job/talk")
    other = browser.get("/s2v/videos/of-run", params={"dag_id": "s2v_batch", "run_id": "talk"})
    assert "This run makes no video" in other.text
    missing = browser.get("/s2v/videos/of-run", params={"dag_id": "speech_to_video", "run_id": "none"})
    assert missing.status_code == 404


def test_figures_are_short() -> None:
    """Durations, amounts and ages are shown in readable units."""
    assert [duration(value) for value in (None, 4.52, 59, 125, 3720)] == ["", "4.5 s", "59 s", "2:05 min", "1:02 h"]
    assert [money(value, "USD") for value in (None, 0, 0.00002, 0.00123, 12.345)] == [
        "",
        "0.00\u00a0USD",
        "< 0.0001\u00a0USD",
        "0.0012\u00a0USD",
        "12.35\u00a0USD",
    ]
    now = datetime.now(UTC)
    ages = [age(now - timedelta(seconds=seconds)) for seconds in (5, 130, 7300, 200_000)]
    assert ages == ["just now", "2 min ago", "2 h ago", "2 d ago"]
