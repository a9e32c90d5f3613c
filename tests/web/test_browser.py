"""Check the pages in Chromium, controlled by playwright, against Airflow's API server."""

import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from s2v_tasks.metadata.store import MetadataStore
from s2v_tasks.storage.s3 import ObjectStore
from tests.web.chromium import chromium as chromium
from tests.web.chromium import needs_chromium, until
from tests.web.chromium import opened as opened
from tests.web.chromium import server as server
from tests.web.sample_job import REQUEST, SPEECH, add_finished_job, add_job, add_rendered_clip

pytestmark = needs_chromium
HOSTILE = '<script>window.hacked = 1</script><img src=x onerror="window.hacked = 2">\u202egnp.exe ' + "W" * 1500


def test_a_clip_plays_with_its_sound_before_the_job_ends(
    opened: Callable[..., Any], metadata: MetadataStore, store: ObjectStore
) -> None:
    """The second clip plays with its part of the speech; the next clip appears without a reload."""
    add_job(metadata, store, "talk", num_clip=3)
    for clip_index in range(2):
        add_rendered_clip(metadata, store, "talk", clip_index)
    page = opened("job/talk")
    assert page.locator("#segment-2").is_disabled()
    page.locator("#segment-1").focus()
    page.keyboard.press("Enter")
    page.evaluate("player.loop = true")
    until(page, "!player.paused && player.getVideoPlaybackQuality().totalVideoFrames >= 4")
    until(page, "!speech.paused && Math.abs(speech.currentTime - 1 - player.currentTime) < 0.2")
    add_rendered_clip(metadata, store, "talk", 2)
    page.wait_for_selector("#segment-2:not([disabled])")
    assert page.locator("#live-state .badge").inner_text().strip() == "running"


def test_a_rerun_plays_beside_its_parent(
    opened: Callable[..., Any], metadata: MetadataStore, store: ObjectStore
) -> None:
    """Both videos play in step."""
    add_finished_job(metadata, store, "talk")
    add_finished_job(metadata, store, "talk-2", parent_job_id="talk", from_clip=1)
    page = opened("job/talk-2")
    page.click("#compare")
    page.click("#play-whole")
    until(page, "player.currentTime > 0.8")
    until(page, "other.currentTime > 0.5 && Math.abs(other.currentTime - player.currentTime) < 0.25")
    page.evaluate("player.loop = true; player.playbackRate = 0.3; player.play()")
    page.click("#compare")
    until(page, "other.paused")
    page.click("#compare")  # while the video plays
    until(page, "!other.paused && !player.paused && other.playbackRate === 0.3")


def test_a_reader_of_a_running_job_keeps_the_focus_and_hears_questions(
    opened: Callable[..., Any], metadata: MetadataStore, store: ObjectStore
) -> None:
    """The focus stays on a part that is replaced, also without an id; a new question is announced."""
    add_job(metadata, store, "talk")
    page = opened("job/talk", "edith")
    page.locator(".scroll").focus()
    add_rendered_clip(metadata, store, "talk", 0)
    page.wait_for_selector(".segment.succeeded")
    assert page.evaluate("document.activeElement.className") == "scroll"
    metadata.approvals.request("talk", None, "f" * 64, run_id="talk", seconds=600)
    until(page, "document.getElementById('announcement').textContent === 'The video waits for approval'")


def test_long_texts_are_scrolled_with_the_keyboard(
    opened: Callable[..., Any], metadata: MetadataStore, store: ObjectStore
) -> None:
    """Each part that scrolls can get the focus and has a name."""
    add_finished_job(metadata, store, "talk", prompt="W " * 1000)
    page = opened("job/talk")
    silent = """[...document.querySelectorAll("main *")]
        .filter((one) => ["auto", "scroll"].includes(getComputedStyle(one).overflowY))
        .filter((one) => one.tabIndex < 0 || !one.ariaLabel).map((one) => one.outerHTML.slice(0, 100))"""
    assert page.evaluate(silent) == []


@pytest.mark.parametrize("address", ["videos", "job/talk", "new"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_fit_a_phone_and_have_names_for_everything(
    opened: Callable[..., Any], metadata: MetadataStore, store: ObjectStore, address: str, scheme: str
) -> None:
    """No page is wider than the screen, each control and picture has a name, and the theme is the system's."""
    add_finished_job(metadata, store, "talk", prompt="W" * 2000, labels={"team": "n" * 60})
    phone = {"viewport": {"width": 360, "height": 740}, "color_scheme": scheme}
    page = opened(address, "edith", **phone)
    page.wait_for_load_state("networkidle")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.evaluate("document.documentElement.dataset.theme") == scheme
    outside = """[...document.querySelectorAll(".chip")].filter((one) =>
        one.getBoundingClientRect().right > one.closest("ul").getBoundingClientRect().right + 1).length"""
    assert page.evaluate(outside) == 0
    nameless = """[...document.querySelectorAll("button, a, input:not([type=hidden]), select, textarea, video, img")]
        .filter((one) => one.checkVisibility() && !one.closest("[aria-hidden]"))
        .filter((one) => !(one.innerText || one.ariaLabel || one.alt || one.title || one.labels?.length))
        .filter((one) => !one.querySelector("img[alt]"))
        .map((one) => one.outerHTML.slice(0, 100))"""
    assert page.evaluate(nameless) == []


def test_a_hostile_job_runs_nothing(opened: Callable[..., Any], metadata: MetadataStore, store: ObjectStore) -> None:
    """Markup in prompt, labels, reason and events stays text on every page."""
    add_job(metadata, store, "talk", prompt=HOSTILE, labels={"<img src=x onerror=hacked=3>": HOSTILE})
    metadata.jobs.fail("talk", HOSTILE)
    for address in ("videos", "job/talk", "new?from=talk"):
        page = opened(address, "edith")
        page.wait_for_load_state("networkidle")
        assert page.evaluate("window.hacked") is None
    assert page.locator("textarea[name=prompt]").input_value().startswith("<script>")


def test_a_viewer_sees_no_action_and_a_visitor_the_login(
    opened: Callable[..., Any], metadata: MetadataStore, store: ObjectStore
) -> None:
    """A viewer has no buttons of actions; without a login, a link leads to Airflow's login."""
    add_job(metadata, store, "talk")
    assert opened("job/talk", "vera").get_by_role("button", name="Cancel").count() == 0
    assert opened("job/talk", "edith").get_by_role("button", name="Cancel").count() == 1
    assert "/auth/login" in opened("job/talk", None).url


def test_a_hidden_page_does_not_poll(opened: Callable[..., Any], metadata: MetadataStore, store: ObjectStore) -> None:
    """Polls stop while the page is hidden and continue when it is shown."""
    add_job(metadata, store, "talk")
    page = opened("job/talk")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.wait_for_timeout(3500)
    assert any("state.json" in url for url in asked)
    page.evaluate("Object.defineProperty(document, 'hidden', {value: true, configurable: true})")
    page.wait_for_timeout(500)
    asked.clear()
    page.wait_for_timeout(4000)
    assert asked == []
    page.evaluate("delete document.hidden; document.dispatchEvent(new Event('visibilitychange'))")
    page.wait_for_timeout(1500)
    assert any("state.json" in url for url in asked)


def test_the_gallery_follows_a_job(opened: Callable[..., Any], metadata: MetadataStore, store: ObjectStore) -> None:
    """State, clips, cost and reason of a card change without a reload."""
    add_job(metadata, store, "talk", num_clip=2)
    page = opened("videos")
    metadata.clips.start("talk", 0, "f" * 64)
    metadata.clips.record_progress("talk", 0, 3, 4, eta_seconds=12)
    until(page, "document.querySelector('.progress-text').textContent.includes('clip 1 step 3/4')")
    poster = page.locator(".card .poster img")
    assert poster.evaluate("image => image.naturalWidth") == 320  # the reference picture
    add_rendered_clip(metadata, store, "talk", 0)
    until(page, "document.querySelector('.card .poster img').naturalWidth === 64")
    metadata.jobs.fail("talk", "A node was lost.")
    page.wait_for_selector(".card[data-ended] .badge.failed")
    assert page.locator(".card .reason").text_content() == "A node was lost."


def test_an_editor_renders_again_and_cancels(
    opened: Callable[..., Any], metadata: MetadataStore, store: ObjectStore, dag: str
) -> None:
    """The form of a rerun appears with the plan; cancel asks for a confirmation, then shows the request."""
    metadata.jobs.enqueue("talk", REQUEST)
    page = opened("job/talk", "edith")
    assert page.locator("#rerun-panel").count() == 0
    layout = add_job(metadata, store, "talk")
    store.put_bytes(layout.request, json.dumps(REQUEST).encode(), "application/json")
    page.locator("#rerun-panel summary").click()
    page.locator("#rerun [name=prompt]").fill("She laughs.")
    metadata.clips.start("talk", 0, "f" * 64)
    page.wait_for_selector(".segment.rendering")
    assert page.locator("#rerun [name=prompt]").input_value() == "She laughs."  # a refresh keeps what is typed
    page.locator("#rerun button[type=submit]").click()
    page.get_by_text("The job of this run has not begun").wait_for()
    page = opened("job/talk", "edith")
    page.locator("[data-action=ask-cancel]").click()
    page.locator("[data-action=keep]").click()
    assert not page.locator("#confirm-cancel").is_visible()
    page.locator("[data-action=ask-cancel]").click()
    page.locator("[data-action=cancel]").click()
    page.get_by_text("It is being cancelled").wait_for()
    assert "edith: cancelled this video" in page.locator("#live-events").inner_text()


def test_the_gallery_opens_in_the_frame_of_airflow(
    opened: Callable[..., Any], server: str, metadata: MetadataStore, store: ObjectStore
) -> None:
    """Links, players and scripts work in the sandboxed frame that the navigation opens."""
    add_finished_job(metadata, store, "talk")
    page = opened("videos")
    page.goto(f"{server}/plugin/videos")
    frame = page.frame_locator("iframe")
    frame.locator(".card[data-job=talk] h2 a").click()
    frame.locator("#play-whole").click()
    player = frame.locator("#player")
    deadline = time.monotonic() + 30
    while player.evaluate("video => video.currentTime") <= 0.3:
        assert time.monotonic() < deadline
        page.wait_for_timeout(50)


def test_a_job_is_made_from_files_of_the_browser(opened: Callable[..., Any], store: ObjectStore, dag: str) -> None:
    """Files are uploaded when they are chosen, then the cost appears, then the job can be started."""
    page = opened("new", "edith")
    assert page.locator("#start").is_disabled()
    page.set_input_files("#image", SPEECH.with_name("portrait.jpg"))
    page.set_input_files("#audio", SPEECH)
    page.locator("[name=prompt]").fill("A drawn portrait speaks.")
    page.wait_for_selector("#start:not([disabled])", timeout=150_000)
    assert "USD" in page.locator("#plan").inner_text()
    page.locator("#start").click()
    page.get_by_text("The job of this run has not begun").wait_for()
    assert store.has_any("uploads/")
