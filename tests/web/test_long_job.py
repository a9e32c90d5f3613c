"""Check the page of a job with many clips, in Chromium."""

from collections.abc import Callable
from typing import Any

from s2v_tasks.metadata.store import MetadataStore
from s2v_tasks.storage.s3 import ObjectStore
from tests.web.chromium import chromium as chromium
from tests.web.chromium import needs_chromium
from tests.web.chromium import opened as opened
from tests.web.chromium import server as server
from tests.web.sample_job import add_job, add_rendered_clip

pytestmark = needs_chromium
VISIBLE_NUMBERS = """[...document.querySelectorAll(".segment-number")]
    .filter((one) => getComputedStyle(one).visibility === "visible").length"""


def test_the_timeline_shows_numbers_only_where_they_fit(
    opened: Callable[..., Any], metadata: MetadataStore, store: ObjectStore
) -> None:
    """The clips fill the width without gaps if they are many, and each keeps its name for a screen reader."""
    add_job(metadata, store, "short", num_clip=9)
    add_job(metadata, store, "long", num_clip=240)
    assert opened("job/short").evaluate(VISIBLE_NUMBERS) == 9
    page = opened("job/long")
    assert page.evaluate(VISIBLE_NUMBERS) == 0
    assert page.get_by_role("button", name="Play clip 240, pending").count() == 1
    widths = page.evaluate(
        """[...document.querySelectorAll(".segment")].map((one) => one.getBoundingClientRect().width)"""
    )
    assert sum(widths) > 0.99 * page.evaluate("document.querySelector('.segments').getBoundingClientRect().width")
    assert page.evaluate("document.querySelector('.scroll').getBoundingClientRect().height") < 800


def test_a_reader_keeps_the_place_when_a_clip_is_finished(
    opened: Callable[..., Any], metadata: MetadataStore, store: ObjectStore
) -> None:
    """The table of clips and the events stay where they were scrolled to when their content is replaced."""
    add_job(metadata, store, "talk", num_clip=60)
    for clip_index in range(1, 40):
        metadata.clips.start("talk", clip_index, "f" * 64)
    page = opened("job/talk", viewport={"width": 400, "height": 800})
    places = """[".scroll", ".events"].map((name) => document.querySelector(name))
        .flatMap((one) => [one.scrollLeft, one.scrollTop]).join()"""
    page.evaluate("document.querySelector('.scroll').scrollTo(80, 300)")
    page.evaluate("document.querySelector('.events').scrollTo(0, 120)")
    assert page.evaluate(places) == "80,300,0,120"
    add_rendered_clip(metadata, store, "talk", 0)
    page.wait_for_selector("#segment-0:not([disabled])")
    assert page.evaluate(places) == "80,300,0,120"
