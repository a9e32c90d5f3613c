"""Check the form of a new video in Chromium: corrections, seeds, changed files, the back button, an ended login."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from s2v_tasks.metadata.store import MetadataStore
from s2v_tasks.storage.s3 import ObjectStore
from tests.web.chromium import chromium as chromium
from tests.web.chromium import needs_chromium, until
from tests.web.chromium import opened as opened
from tests.web.chromium import server as server
from tests.web.sample_job import REQUEST, SPEECH, add_job

pytestmark = needs_chromium
PICTURE = SPEECH.with_name("portrait.jpg")
PLAN = {"num_clip": 2, "duration": "9.7 s", "size": "128 × 192", "gpu_time": "24 s on cpu", "cost": "0.5 USD"}


@pytest.fixture
def form(opened: Callable[..., Any], metadata: MetadataStore) -> Callable[..., Any]:
    """Opens the form with the files of an earlier job; `sent` has the bodies of its plans."""

    def form() -> tuple[Any, list[dict[str, Any]]]:
        metadata.jobs.enqueue("talk", REQUEST)
        page = opened("new", "edith")
        sent: list[dict[str, Any]] = []

        def answer(route: Any) -> None:
            sent.append(json.loads(route.request.post_data))
            bad = sent[-1].get("size") == "1*1"
            body = {"detail": "Bad request: size '1*1'."} if bad else PLAN | {"warnings": [], "problem": None}
            route.fulfill(status=400 if bad else 200, json=body)

        page.route("**/new/plan", answer)
        page.goto(page.url + "?from=talk")
        page.wait_for_selector("#start:not([disabled])")
        return page, sent

    return form


def test_a_refused_field_hides_the_earlier_cost(form: Callable[..., Any]) -> None:
    """After a wrong size neither the earlier plan nor its cost is shown; a correction hides the error at once."""
    page, _ = form()
    assert "0.5 USD" in page.locator("#start-note").inner_text()
    page.locator("summary").click()
    page.locator("[name=size]").fill("1*1")
    page.get_by_text("There is no plan.").wait_for()
    assert page.locator("#plan").is_hidden()
    assert page.locator("#start-note").inner_text() == ""
    page.locator("[name=size]").fill("128*192")
    assert page.locator("#problem").inner_text() == ""
    page.wait_for_selector("#start:not([disabled])")
    assert page.locator("#plan").is_visible()


def test_a_large_seed_is_sent_exactly(form: Callable[..., Any]) -> None:
    """A seed that a double cannot hold, as plans have them, is not rounded."""
    page, sent = form()
    page.locator("summary").click()
    page.locator("[name=base_seed]").fill("3545330251549147096")
    until(page, "!document.getElementById('start').disabled")
    assert int(sent[-1]["base_seed"]) == 3545330251549147096


def test_the_later_of_two_files_is_used(form: Callable[..., Any], store: ObjectStore) -> None:
    """An upload that ends after that of a file chosen later changes nothing."""
    page, sent = form()
    held: list[Any] = []

    def upload(route: Any) -> None:
        if "first" in route.request.url:
            held.append(route)
        else:
            route.fulfill(json={"uri": "s3://bucket/second.jpg"})

    page.route("**/new/upload*", upload)
    for name in ("first.jpg", "second.jpg"):
        page.set_input_files("#image", {"name": name, "mimeType": "image/jpeg", "buffer": PICTURE.read_bytes()})
    until(page, "document.querySelector('[name=image_uri]').value.endsWith('second.jpg')")
    held[0].fulfill(json={"uri": "s3://bucket/first.jpg"})
    page.wait_for_selector("#start:not([disabled])")
    assert sent[-1]["image_uri"] == "s3://bucket/second.jpg"


def test_a_file_that_a_proxy_refuses_is_not_chosen_any_more(form: Callable[..., Any]) -> None:
    """The page of a proxy becomes a sentence. The form shows no file that it does not have."""
    page, _ = form()
    refusal = "<html><h1>413 Request Entity Too Large</h1></html>"
    page.route("**/new/upload*", lambda route: route.fulfill(status=413, content_type="text/html", body=refusal))
    page.set_input_files("#image", PICTURE)
    page.get_by_text("A proxy in front of Airflow refuses the file as too large (413)").wait_for()
    assert page.locator("#image").evaluate("input => input.files.length") == 0
    assert page.locator("#preview").is_hidden()
    assert page.locator("#image-progress").is_hidden()
    assert page.locator("#start").is_disabled()


def test_a_proxy_without_airflow_is_named(form: Callable[..., Any]) -> None:
    """While Airflow restarts, Start says so and can be pressed again."""
    page, _ = form()
    page.route("**/new/start", lambda route: route.fulfill(status=502, content_type="text/html", body="<html></html>"))
    page.locator("#start").click()
    page.get_by_text("Airflow does not answer its proxy (502)").wait_for()
    assert page.locator("#start").is_enabled()


def test_the_back_button_keeps_the_chosen_files(form: Callable[..., Any]) -> None:
    """A form that the browser restores uses the files whose names it shows, not those of the earlier job."""
    page, sent = form()
    page.route("**/new/upload*", lambda route: route.fulfill(json={"uri": "s3://bucket/mine.jpg"}))
    page.set_input_files("#image", PICTURE)
    page.wait_for_selector("#start:not([disabled])")
    page.goto(page.url.partition("/new")[0] + "/videos")
    sent.clear()
    page.go_back()
    page.wait_for_selector("#start:not([disabled])")
    assert page.locator("#image").evaluate("input => input.files.length") == 1
    assert sent[-1]["image_uri"] == "s3://bucket/mine.jpg"


def test_an_ended_login_is_said_and_keeps_what_was_typed(form: Callable[..., Any]) -> None:
    """Without a login Start says so; the form keeps the prompt and works after a login in another tab."""
    page, _ = form()
    page.locator("[name=prompt]").fill("She laughs.")
    cookies = page.context.cookies()
    page.context.clear_cookies()
    page.locator("#start").click()
    page.get_by_text("Your login has ended").wait_for()
    assert page.locator("[name=prompt]").input_value() == "She laughs."
    page.context.add_cookies(cookies)
    assert page.locator("#start").is_enabled()


def test_a_page_without_a_login_says_that_it_is_out_of_date(
    opened: Callable[..., Any], metadata: MetadataStore, store: ObjectStore
) -> None:
    """Say on the page that it no longer follows a running job when the login has ended."""
    add_job(metadata, store, "talk")
    page = opened("job/talk", "edith")
    page.context.clear_cookies()
    page.get_by_text("Your login has ended").wait_for(timeout=10_000)
    assert page.locator("#announcement").bounding_box()["height"] > 10


def test_a_label_filter_without_a_value_is_explained(opened: Callable[..., Any], metadata: MetadataStore) -> None:
    """The filter of labels asks for NAME=VALUE instead of showing all videos."""
    metadata.jobs.enqueue("talk", REQUEST)
    page = opened("videos", "edith")
    page.locator("[name=label]").fill("news")
    assert not page.locator("[name=label]").evaluate("input => input.checkValidity()")
    page.locator("[name=label]").fill("team=news")
    page.get_by_role("button", name="Filter").click()
    page.get_by_text("No video matches the filter").wait_for()
