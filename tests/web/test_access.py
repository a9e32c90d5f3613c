"""Check access: a table of every route, method and account, and hostile requests."""

import re
from typing import Any
from urllib.parse import urljoin

import pytest

from s2v_tasks.metadata.store import MetadataStore
from s2v_tasks.storage.s3 import ObjectStore
from tests.web.conftest import Login
from tests.web.sample_job import add_job

# Route → address, and the answers to an editor, a viewer and somebody who is not logged in.
READ = {
    "/videos": "/videos",
    "/videos/changes.json": "/videos/changes.json?jobs=talk",
    "/videos/of-run": "/videos/of-run?dag_id=other&run_id=1",
    "/job/{job_id}": "/job/talk",
    "/job/{job_id}/state.json": "/job/talk/state.json",
    "/job/{job_id}/video.mp4": "/job/talk/video.mp4",
    "/job/{job_id}/clips/{clip_index}.mp4": "/job/talk/clips/0.mp4",
    "/job/{job_id}/speech.wav": "/job/talk/speech.wav",
    "/job/{job_id}/picture.png": "/job/talk/picture.png",
    "/job/{job_id}/contact-sheet.jpg": "/job/talk/contact-sheet.jpg",
    "/job/{job_id}/poster.jpg": "/job/talk/poster.jpg",
    "/job/{job_id}/reference.jpg": "/job/talk/reference.jpg",
    "/job/{job_id}/waveform.json": "/job/talk/waveform.json",
    "/job/{job_id}/download/{name}": "/job/talk/download/video",
    "/static/{name}": "/static/videos.css",
    "/jobs/{job_id}/{file}": "/jobs/talk/video",
}
# Routes that change something: method and address.
ACT = {
    "/new": ("GET", "/new?from=talk"),
    "/new/plan": ("POST", "/new/plan"),
    "/new/start": ("POST", "/new/start"),
    "/new/upload": ("POST", "/new/upload?name=a.png"),
    "/job/{job_id}/cancel": ("POST", "/job/talk/cancel"),
    "/job/{job_id}/retry": ("POST", "/job/talk/retry"),
    "/job/{job_id}/rerun": ("POST", "/job/talk/rerun"),
    "/job/{job_id}/approve": ("POST", "/job/talk/approve"),
    "/job/{job_id}/reject": ("POST", "/job/talk/reject"),
}
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


def routes() -> dict[str, set[str]]:
    """Return the methods of every route of the application."""
    from s2v_tasks.web.plugin import _application

    found: dict[str, set[str]] = {}
    for route in _application().routes:
        found.setdefault(route.path, set()).update(route.methods)
    return found


def test_the_table_names_every_route(installation: Any) -> None:
    """A route without a row in the table fails, and no mounted application escapes the checks."""
    assert routes() == {path: {"GET"} for path in READ} | {path: {method} for path, (method, _) in ACT.items()}


def test_no_route_answers_without_a_login(login: Login, metadata: MetadataStore, store: ObjectStore) -> None:
    """Every existing route answers 401, with every method; other methods are not allowed."""
    add_job(metadata, store, "talk")
    nobody, forged = login(None), login(None)
    forged.cookies.set("_token", "e30.e30.e30")
    for path, (allowed, address) in (ACT | {path: ("GET", address) for path, address in READ.items()}).items():
        for method in METHODS:
            answer = nobody.request(method, f"/s2v{address}")
            assert answer.status_code == (401 if method == allowed else 405), (method, path)
            assert b"talk" not in answer.content
        assert forged.request(allowed, f"/s2v{address}").status_code in {401, 403}, path


def test_a_viewer_changes_nothing(login: Login, metadata: MetadataStore, store: ObjectStore) -> None:
    """Every action answers 403 before its values are read, and the pages of a viewer offer none."""
    add_job(metadata, store, "talk")
    before = metadata.gallery.last_event_id("talk")
    viewer = login("vera")
    for method, address in ACT.values():
        assert viewer.request(method, f"/s2v{address}", json={"from_clip": 0}).status_code == 403, address
    assert metadata.gallery.last_event_id("talk") == before
    assert "data-action" not in viewer.get("/s2v/job/talk").text
    assert "New video" not in viewer.get("/s2v/videos").text
    assert "data-action" in login("edith").get("/s2v/job/talk").text


@pytest.mark.parametrize(
    "headers",
    [{"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"}, {"Origin": "https://evil.example"}],
    ids=["cross-site", "same-site", "origin"],
)
def test_a_page_of_another_site_changes_nothing(
    login: Login, metadata: MetadataStore, store: ObjectStore, headers: dict[str, str]
) -> None:
    """An action from a page of another site is refused for every account."""
    add_job(metadata, store, "talk")
    for method, address in ACT.values():
        if method == "POST":
            answer = login("adam").request(method, f"/s2v{address}", headers=headers, json={"from_clip": 0})
            assert answer.status_code == 403, address
    job = metadata.jobs.get("talk")
    assert job is not None
    assert job.cancel_requested_at is None


@pytest.mark.parametrize("name", ["vera", "edith", "adam"])
def test_accounts_that_may_see_runs_see_their_videos(
    login: Login, metadata: MetadataStore, store: ObjectStore, name: str
) -> None:
    """Viewer, editor and admin read all pages, and get 404 for what does not exist."""
    layout = add_job(metadata, store, "talk")
    store.put_bytes(layout.clip(0), b"clip", "video/mp4")
    missing = {"/job/{job_id}/video.mp4", "/job/{job_id}/contact-sheet.jpg", "/job/{job_id}/download/{name}"}
    browser = login(name)
    for path, address in READ.items():
        answer = browser.get(f"/s2v{address}")
        assert answer.status_code == (404 if path in missing or path.startswith("/jobs/") else 200), path
        assert answer.headers["x-content-type-options"] == "nosniff"
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'; script-src 'self'; style-src 'self';" in policy
        assert "unsafe" not in policy


def test_accounts_without_the_dag_see_no_video(
    login: Login, metadata: MetadataStore, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without permission for the DAG, every route answers 403, as a page in the style of the others."""
    from airflow.api_fastapi.auth.managers.simple.simple_auth_manager import SimpleAuthManager

    add_job(metadata, store, "talk")
    asked = []

    def deny(self: Any, *, details: Any, **_: Any) -> bool:
        asked.append(details.id)
        return False

    monkeypatch.setattr(SimpleAuthManager, "is_authorized_dag", deny)
    browser = login("edith")
    calls = [*ACT.values(), *(("GET", address) for path, address in READ.items() if path != "/static/{name}")]
    assert {browser.request(method, f"/s2v{address}").status_code for method, address in calls} == {403}
    assert set(asked) == {"speech_to_video"}
    refused = browser.get("/s2v/job/talk", headers={"Accept": "text/html"})
    assert "edith may not see videos" in refused.text
    gallery = browser.get("/s2v/videos", headers={"Accept": "text/html"})
    assert "edith may not see videos" in gallery.text
    assert ["Show all videos" in answer.text for answer in (refused, gallery)] == [True, False]
    styles = re.findall(r'(?:src|href)="(\.\./static/[^"]+)"', refused.text)
    assert len(styles) == 3
    assert {browser.get(urljoin("/s2v/job/talk", address)).status_code for address in styles} == {200}


# Permission of Airflow → text of the page that goes with it, and the routes that demand it.
PAGE = {
    ("POST", "RUN"): ('data-action="retry"', ["/new/start", "/new/upload?name=a.png", "/job/talk/retry"]),
    ("PUT", "RUN"): ('data-action="ask-cancel"', ["/job/waits/cancel"]),
    ("PUT", "HITL_DETAIL"): ('data-action="approve"', ["/job/waits/approve"]),
}


@pytest.mark.parametrize("given", [*PAGE, None], ids=str)
def test_each_permission_has_its_own_buttons(
    login: Login,
    metadata: MetadataStore,
    store: ObjectStore,
    monkeypatch: pytest.MonkeyPatch,
    given: tuple[str, str] | None,
) -> None:
    """A custom role sees the buttons that it may press; the other actions are refused with the missing permission."""
    from airflow.api_fastapi.auth.managers.simple.simple_auth_manager import SimpleAuthManager

    def allow(self: Any, *, method: str, access_entity: Any = None, **_: Any) -> bool:
        return method == "GET" or (method, access_entity.name) == given

    monkeypatch.setattr(SimpleAuthManager, "is_authorized_dag", allow)
    add_job(metadata, store, "talk")
    metadata.jobs.fail("talk", "It failed.")
    add_job(metadata, store, "waits", approval="result")
    metadata.approvals.request("waits", None, "f" * 64, run_id="waits", seconds=600)
    browser = login("edith")
    text = browser.get("/s2v/job/talk").text + browser.get("/s2v/job/waits").text
    assert {permission: button in text for permission, (button, _) in PAGE.items()} == {
        permission: permission == given for permission in PAGE
    }
    assert ("New video" in browser.get("/s2v/videos").text) == (given == ("POST", "RUN"))
    assert 'data-action="ask-reject"' not in text  # it needs two permissions
    for permission, (_, addresses) in PAGE.items():
        if permission != given:
            for address in addresses:
                refused = browser.post(f"/s2v{address}", json={"clip_index": None})
                assert refused.status_code == 403
                assert refused.json()["detail"].startswith("edith may not "), address
                assert "expected the permission to " in refused.json()["detail"]


def test_a_person_without_a_login_is_sent_to_the_login(login: Login) -> None:
    """A link to a video leads to Airflow's login and back."""
    answer = login(None).get("/s2v/job/talk", headers={"Accept": "text/html"})
    assert answer.status_code == 303
    assert answer.headers["location"] == "/auth/login?next=http%3A%2F%2Fairflow.test%2Fs2v%2Fjob%2Ftalk"


def test_a_login_that_is_not_valid_any_more_is_none(login: Login) -> None:
    """Airflow answers 403 to the token of a removed account or an earlier secret: a page leads to the login."""
    browser = login(None)
    browser.cookies.set("_token", "e30.e30.e30")
    answer = browser.get("/s2v/videos", headers={"Accept": "text/html"})
    assert (answer.status_code, answer.headers["location"].partition("?")[0]) == (303, "/auth/login")
    answer = login(None).get("/s2v/videos/changes.json", headers={"Cookie": "_token=e30.e30.e30"})
    assert answer.status_code == 401
    assert answer.json()["detail"] == "There is no valid login (Invalid JWT token): log in to Airflow again."


HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)> {{ 7 * 7 }} \u202egnp.exe " + "x" * 1800


def test_a_hostile_job_is_shown_as_text(login: Login, metadata: MetadataStore, store: ObjectStore) -> None:
    """Markup in prompts, labels, reasons and file names is escaped on every page."""
    hostile = {"prompt": HOSTILE, "labels": {"<b>bold": "<i>&amp;"}, "audio_uri": "s3://b/<svg onload=alert(3)>.wav"}
    add_job(metadata, store, "talk", **hostile)
    metadata.jobs.fail("talk", HOSTILE)
    for address in ("/videos", "/job/talk", f"/videos?text={HOSTILE[:100]}", "/videos?label=<b>=<script>"):
        text = login("vera").get(f"/s2v{address}").text
        assert "<script>alert" not in text
        assert "<img src=x" not in text
        assert "<svg onload" not in text
        assert "<b>" not in text
        assert "<i>" not in text
        assert " 49 " not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in login("vera").get("/s2v/job/talk").text
    refused = login("vera").get("/s2v/job/<script>alert(1)", headers={"Accept": "text/html"})
    assert (refused.status_code, "<script>alert" in refused.text) == (404, False)


@pytest.mark.parametrize("name", ["../application.py", "..%2Fplugin.py", "%2e%2e/services.py", "none.css", "%00"])
def test_only_static_files_are_served(login: Login, name: str) -> None:
    """No name reaches a file outside the folder of static files."""
    assert login("vera").get(f"/s2v/static/{name}").status_code == 404
