"""Check the plugin in Airflow: its entry point, its imports, and its links to files of a job."""

import json
import subprocess
import sys
import tomllib
import urllib.request
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from s2v_tasks.errors import ConfigurationError, TransientError
from s2v_tasks.storage.layout import JobLayout, output_video_uri
from s2v_tasks.storage.s3 import ObjectStore
from s2v_tasks.web import application
from s2v_tasks.web.plugin import root_middlewares
from s2v_tasks.web.services import services
from tests.web.conftest import Login

REPOSITORY = Path(__file__).parents[2]
NEEDED_FOR_ANSWERS_ONLY = ["boto3", "botocore", "s2v_tasks.storage.s3", "torch", "ffmpeg", "fastapi", "jinja2"]


def test_airflow_finds_the_plugin_by_the_entry_point_of_the_package() -> None:
    """The package names the plugin without a `plugins_folder`, and its application has a prefix of its own."""
    declared = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["entry-points"]["airflow.plugins"]
    found = {point.name: point for point in entry_points(group="airflow.plugins") if point.name in declared}
    assert {name: point.value for name, point in found.items()} == declared
    assert [app["url_prefix"] for app in found["s2v_videos"].load().fastapi_apps] == ["/s2v"]


def test_the_ui_gets_an_entry_in_the_navigation_and_a_tab_of_a_run(login: Login) -> None:
    """Addresses are relative, so that they work below a path prefix."""
    plugins = login("adam").get("/api/v2/plugins").json()["plugins"]
    views = next(plugin["external_views"] for plugin in plugins if plugin["name"] == "s2v_videos")
    assert [(view["name"], view["destination"]) for view in views] == [("Videos", "nav"), ("Video", "dag_run")]
    assert all(not view[address].startswith("/") for view in views for address in ("href", "icon", "icon_dark_mode"))


def test_a_process_that_parses_dags_loads_the_plugin_without_storage() -> None:
    """A process that loads the plugin imports storage and metadata only when a request comes."""
    script = "import json, sys, airflow.plugins_manager; known = set(sys.modules); import s2v_tasks.web.plugin; "
    script += "print(json.dumps(sorted(set(sys.modules) - known)))"
    done = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    loaded = json.loads(done.stdout.splitlines()[-1])
    assert "s2v_tasks.web.plugin" in loaded
    assert [name for name in NEEDED_FOR_ANSWERS_ONLY if name in loaded] == []


@pytest.mark.parametrize("all_admins", [True, False])
def test_without_logins_only_own_host_names_are_answered(all_admins: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page whose name leads to 127.0.0.1 (DNS rebinding) gets no answer where everybody is an administrator."""
    monkeypatch.setenv("AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS", str(all_admins))
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "http://videos.example:8080/airflow")
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTION_API_SERVER_URL", "http://api-server:8080/execution/")
    server = FastAPI()
    server.add_api_route("/", lambda: "all videos")
    for one in root_middlewares():
        server.add_middleware(one["middleware"])
    hosts = ["127.0.0.1:8080", "localhost:8080", "videos.example:8080", "api-server:8080", "evil.example:8080"]
    answers = [TestClient(server).get("/", headers={"Host": host}).status_code for host in hosts]
    assert answers == [200, 200, 200, 200, 400 if all_admins else 200]


def test_each_file_is_signed_in_the_process_that_answers(
    login: Login, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The browser is redirected to a signed URL of the file, and no process is started."""
    layout = JobLayout("my-job")
    files = {
        "video": output_video_uri(services().settings, "my-job"),
        "report": layout.report,
        "contact-sheet": layout.contact_sheet,
    }
    for name, address in files.items():
        store.put_bytes(address, name.encode(), "application/octet-stream")
    browser = login("vera")
    assert browser.get("/s2v/jobs/my-job/unknown").status_code == 404  # the first request loads the application
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a process was started"))
    for name in files:
        answer = browser.get(f"/s2v/jobs/my-job/{name}")
        assert (answer.status_code, answer.headers["cache-control"]) == (307, "no-store")
        with urllib.request.urlopen(answer.headers["location"]) as file:  # noqa: S310 - the store of this test
            assert file.read().decode() == name


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("no-such-job/video", "Job no-such-job has no video yet"),
        ("my-job/plan.json", "'plan.json' is not a file of a job: expected one of video, report, contact-sheet."),
        ("My_Job/video", "job id 'My_Job': expected 3 to 63 lower-case letters"),
    ],
)
def test_a_missing_file_is_not_found(login: Login, path: str, said: str) -> None:
    """A missing file, and a malformed job id, answer 404 with the message of the package."""
    answer = login("vera").get(f"/s2v/jobs/{path}")
    assert answer.status_code == 404
    assert said in answer.json()["detail"]


@pytest.mark.parametrize(("error", "status"), [(ConfigurationError("No bucket."), 500), (TransientError("Away."), 503)])
def test_a_store_that_fails_is_no_missing_file(
    login: Login, monkeypatch: pytest.MonkeyPatch, error: Exception, status: int
) -> None:
    """A wrong setting and an unavailable store have their own answers with the reason."""

    def fail(*_: Any) -> str:
        raise error

    monkeypatch.setattr(application, "result_link", fail)
    answer = login("vera").get("/s2v/jobs/my-job/video")
    assert (answer.status_code, answer.json()["detail"]) == (status, str(error))
