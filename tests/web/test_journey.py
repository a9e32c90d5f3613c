"""A person's way through the page, in a browser, on a running Airflow: upload, watch, rerun, cancel."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from s2v_tasks.embedded.airflow import AirflowInstallation
from s2v_tasks.embedded.guard import temporary_home
from s2v_tasks.embedded.postgres import PostgresServer
from s2v_tasks.embedded.stack import Services
from s2v_tasks.settings import load_settings
from tests.web.test_browser import CHROMIUM, chromium, until

SAMPLES = Path(__file__).parents[1] / "samples"
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: `apt-get install chromium`"),
    pytest.mark.timeout(1200),  # minutes on a machine that does other work, too
]
__all__ = ["chromium"]
JOB_SECONDS = 480


@pytest.fixture(scope="module")
def airflow() -> Iterator[str]:
    """The address of a running Airflow with PostgreSQL, S3 and the tiny checkpoint, as `make up` starts them."""
    with temporary_home() as home, pytest.MonkeyPatch.context() as patch:
        patch.setenv("S2V_HOME", str(home))
        load_settings.cache_clear()
        with Services(home).in_use():
            installation = AirflowInstallation(home)
            installation.start(installation.environment(PostgresServer(home).ensure_database("airflow")))
            yield installation.url
            installation.stop()
    load_settings.cache_clear()


def fill(page: Any, **fields: str) -> None:
    """Fill fields of the form of a new job, and wait for its plan."""
    if not page.locator("details.panel").first.get_attribute("open"):
        page.locator("details.panel summary").first.click()
    for name, value in fields.items():
        page.locator(f"form [name={name}]").fill(value)
    page.locator("form [name=prompt]").focus()  # the last field has changed
    page.wait_for_selector("#start:not([disabled])", timeout=60_000)


def status(page: Any) -> str:
    return str(page.locator("#live-state .badge").inner_text()).strip()


def test_from_an_upload_to_a_rerun(airflow: str, chromium: Any) -> None:
    """Every step that the grid of tasks was needed for before happens on the page, with one login and no reload."""
    page = chromium.new_page()
    page.set_default_timeout(120_000)
    page.goto(f"{airflow}/s2v/new")
    page.set_input_files("#image", SAMPLES / "portrait.jpg")
    page.set_input_files("#audio", SAMPLES / "speech.mp3")
    page.locator("form [name=prompt]").fill("A drawn portrait speaks.")
    fill(page, job_id="first", size="128*128", infer_frames="32", num_clip="2", sample_steps="2")
    assert "USD" in page.locator("#plan").inner_text()
    page.click("#start")
    page.wait_for_url("**/s2v/job/first", timeout=1000 * JOB_SECONDS)

    page.wait_for_selector("#segment-0:not([disabled])", timeout=1000 * JOB_SECONDS)
    page.click("#segment-0")
    until(page, "player.currentTime > 0.5 && speech.currentTime > 0.3")
    assert status(page) == "running"  # a clip is watched before the job ends

    page.wait_for_selector("#live-state .badge.succeeded", timeout=1000 * JOB_SECONDS)
    page.click("#play-whole")
    until(page, "player.currentTime > 1.2")
    frames, sound = page.evaluate(
        "[player.getVideoPlaybackQuality().totalVideoFrames, player.webkitAudioDecodedByteCount]"
    )
    assert frames >= 12
    assert sound > 0

    page.click("#rerun-panel summary")
    page.select_option("#rerun [name=from_clip]", "1")
    page.fill("#rerun [name=prompt]", "A drawn portrait laughs.")
    page.click("#rerun button[type=submit]")
    page.wait_for_url("**/s2v/job/first-r*", timeout=1000 * JOB_SECONDS)
    page.wait_for_selector("#live-state .badge.succeeded", timeout=1000 * JOB_SECONDS)
    assert page.locator("#live-clips tbody tr").nth(0).inner_text().split()[-1] == "first"
    page.click("#compare")
    page.click("#play-whole")
    until(page, "player.currentTime > 0.5 && other.currentTime > 0.3")
    page.close()


def test_a_job_is_cancelled_and_offered_again(airflow: str, chromium: Any) -> None:
    """Cancel asks first; the page shows the end, who asked for it, and a button that starts the job again."""
    page = chromium.new_page()
    page.set_default_timeout(120_000)
    page.goto(f"{airflow}/s2v/new?from=first")
    fill(page, job_id="endless", size="256*256", sample_steps="100", num_clip="1")
    page.click("#start")
    page.wait_for_url("**/s2v/job/endless", timeout=1000 * JOB_SECONDS)
    page.wait_for_selector(".segment.rendering", timeout=1000 * JOB_SECONDS)
    page.click("[data-action=ask-cancel]")
    page.click("[data-action=cancel]")
    page.wait_for_selector("#live-state .badge.cancelled", timeout=1000 * JOB_SECONDS)
    assert "cancelled this video" in page.locator("#live-events").inner_text()
    assert page.locator("[data-action=retry]").is_enabled()
    page.close()


def test_the_page_is_a_part_of_airflow(airflow: str, chromium: Any) -> None:
    """The navigation opens the gallery, and the tab of a run its video, inside the frames of Airflow's UI."""
    page = chromium.new_page()
    page.set_default_timeout(120_000)
    page.goto(f"{airflow}/plugin/videos")
    gallery = page.frame_locator("iframe")
    gallery.locator(".card[data-job=first] h2 a").click()
    assert gallery.locator("h1").inner_text() == "first"
    page.goto(f"{airflow}/dags/speech_to_video/runs/first/plugin/video")
    frame = page.frame_locator("iframe")
    frame.locator("#segment-0").click()
    video = next(one for one in page.frames if "/s2v/job/first" in one.url)
    until(video, "player.currentTime > 0.3")
    page.close()
