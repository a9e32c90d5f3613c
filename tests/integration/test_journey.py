"""Check all actions of a person on the Videos page of a running Airflow, from upload to approved video."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from s2v_tasks.embedded.airflow import AirflowInstallation
from s2v_tasks.embedded.postgres import PostgresServer
from s2v_tasks.metadata.session import engine_from_settings
from s2v_tasks.metadata.store import MetadataStore
from s2v_tasks.metadata.tables import Job
from s2v_tasks.settings import Settings, load_settings
from tests.web.chromium import chromium as chromium
from tests.web.chromium import needs_chromium, until

SAMPLES = Path(__file__).parents[1] / "samples"
JOB = "journey"
FIELDS = {"num_clip": "2", "infer_frames": "16", "sample_steps": "4", "size": "128*128", "base_seed": "3"}
PATIENCE = 300_000  # ms: other tests may use the machine
pytestmark = [needs_chromium, pytest.mark.journey, pytest.mark.timeout(1500)]


@pytest.fixture(scope="module")
def airflow(stack_home: Path) -> Iterator[AirflowInstallation]:
    installation = AirflowInstallation(stack_home, "journey")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("S2V_HOME", str(stack_home))
        load_settings.cache_clear()
        database_url = PostgresServer(stack_home).ensure_database("journey")
        installation.start(installation.environment(database_url))
    yield installation
    installation.stop()


@pytest.fixture
def page(chromium: Any, airflow: AirflowInstallation) -> Iterator[Any]:
    """A page of the embedded Airflow with its admin logged in; errors of scripts fail the test."""
    problems: list[str] = []
    context = chromium.new_context()
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    page.on("pageerror", lambda error: problems.append(str(error)))
    yield page
    context.close()
    assert problems == []


def submit(page: Any, url: str) -> None:
    """Upload picture and speech, read the cost, and start the job."""
    page.goto(f"{url}/s2v/new")
    page.set_input_files("#image", SAMPLES / "portrait.jpg")
    page.set_input_files("#audio", SAMPLES / "speech.mp3")
    page.locator("[name=prompt]").fill("A drawn portrait speaks.")
    page.locator("[name=job_id]").fill(JOB)
    if not page.locator("[name=num_clip]").is_visible():
        page.locator("details.panel summary").first.click()
    for name, value in FIELDS.items():
        page.locator(f"[name={name}]").fill(value)
    page.locator("[name=approval]").select_option("each_clip")
    page.wait_for_selector("#start:not([disabled])")
    page.wait_for_timeout(1000)  # the plan is made anew after the last field
    page.wait_for_selector("#start:not([disabled])")
    assert "USD" in page.locator("#plan").inner_text()
    page.locator("#start").click()


def badge(page: Any, status: str) -> None:
    page.wait_for_selector(f"#live-state .badge.{status}")


def plays(page: Any) -> None:
    """Return whether time advances and frames are decoded."""
    page.evaluate("player.loop = true")
    until(page, "!player.paused && player.currentTime > 0.2", 60)
    until(page, "player.getVideoPlaybackQuality().totalVideoFrames >= 8", 60)


def test_a_person_makes_approves_and_reruns_a_video(page: Any, airflow: AirflowInstallation, stack: Settings) -> None:
    """Upload, play an early clip, approve, reject, watch the rerun, rerun again and cancel, all on the pages."""
    submit(page, airflow.url)

    # The first clip plays while the job waits for its approval; the next one is not rendered.
    page.get_by_role("heading", name="Clip 1 waits for approval").wait_for()
    assert page.locator("#segment-1").is_disabled()
    page.locator("#segment-0").click()
    plays(page)
    badge(page, "running")
    page.get_by_role("button", name="Approve").click()

    # The joined video waits, unpublished. Its second clip is rejected, with another seed.
    page.get_by_role("heading", name="The video waits for approval").wait_for()
    page.get_by_role("button", name="Reject …").click()
    page.locator("#rejection [name=note]").fill("She looks away.")
    page.locator("#rejection [name=from_clip]").fill("2")
    page.locator("#rejection [name=base_seed]").fill("11")
    page.locator("#rejection button[type=submit]").click()
    badge(page, "cancelled")
    first, child = found(stack, JOB), None
    while child is None:
        page.wait_for_timeout(500)
        child = found(stack, str(first.approvals[-1].next_job_id))
    assert first.video_uri is None
    assert first.reason.endswith(f"She looks away. Job {child.job_id} renders it again from clip 2.")

    # The rerun has the first clip already; its video is approved, published and played.
    page.goto(f"{airflow.url}/s2v/job/{child.job_id}")
    page.get_by_role("heading", name="The video waits for approval").wait_for()
    page.get_by_role("button", name="Approve").click()
    badge(page, "succeeded")
    page.locator("#play-whole").click()
    plays(page)
    done = found(stack, child.job_id)
    assert [clip.source_job_id for clip in done.clips] == [JOB, None]
    assert [approval.status for approval in (*first.approvals, *done.approvals)] == ["approved", "rejected", "approved"]
    assert {approval.decided_by for approval in done.approvals} == {"Anonymous"}

    # From clip 1 on with another preset and prompt, and cancelled while it runs.
    page.locator("#rerun-panel summary").click()
    page.locator("#rerun [name=preset]").select_option("high")
    page.locator("#rerun [name=prompt]").fill("She laughs.")
    page.locator("#rerun button[type=submit]").click()
    page.locator("[data-action=ask-cancel]").click()
    page.locator("[data-action=cancel]").click()
    badge(page, "cancelled")


def found(settings: Settings, job_id: str) -> Job:
    """Return the job; None before its first step has ended."""
    engine = engine_from_settings(settings)
    job: Any = MetadataStore(engine).jobs.get(job_id)
    engine.dispose()
    return job
