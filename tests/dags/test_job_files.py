"""Files of a job in Airflow's UI: found by Airflow, answered in the API server's own process."""

import json
import subprocess
import sys
import tomllib
import urllib.request
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

from s2v_tasks.errors import ConfigurationError, TransientError
from s2v_tasks.settings import Settings
from s2v_tasks.storage.layout import JobLayout, output_video_uri
from s2v_tasks.storage.result_files import JobLinks
from s2v_tasks.storage.s3 import ObjectStore
from s2v_tasks.web import job_files

REPOSITORY = Path(__file__).parents[2]
NEEDED_FOR_ANSWERS_ONLY = ["boto3", "botocore", "s2v_tasks.storage.s3", "torch", "ffmpeg", "fastapi"]


@pytest.fixture
def client(s3_settings: Settings) -> Iterator[Any]:
    """A browser in which somebody is logged in to Airflow, whose API server has the settings of this test."""
    from airflow.api_fastapi.core_api.security import get_user
    from fastapi.testclient import TestClient

    job_files._links.cache_clear()
    application = job_files._application()
    application.dependency_overrides[get_user] = lambda: "anna"
    yield TestClient(application, follow_redirects=False)
    application.dependency_overrides.clear()
    job_files._links.cache_clear()


def test_airflow_finds_the_plugin_by_the_entry_point_of_the_package() -> None:
    """No `plugins_folder` is needed: the package names the plugin, whose application has a prefix of its own."""
    declared = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["entry-points"]["airflow.plugins"]
    found = {point.name: point for point in entry_points(group="airflow.plugins") if point.name in declared}
    assert {name: point.value for name, point in found.items()} == declared
    assert [app["url_prefix"] for app in found["s2v_job_files"].load().fastapi_apps] == ["/s2v"]


def test_a_process_that_parses_dags_loads_the_plugin_without_storage() -> None:
    """Every Airflow process loads all plugins: this one imports what answers need only where requests come."""
    script = "import json, sys, airflow.plugins_manager; known = set(sys.modules); import s2v_tasks.web.job_files; "
    script += "print(json.dumps(sorted(set(sys.modules) - known)))"
    done = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    loaded = json.loads(done.stdout.splitlines()[-1])
    assert "s2v_tasks.web.job_files" in loaded
    assert [name for name in NEEDED_FOR_ANSWERS_ONLY if name in loaded] == []


def test_each_file_is_signed_in_the_process_that_answers(
    client: Any, s3_settings: Settings, object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The browser is sent on to the file itself; no process is started for it."""
    layout = JobLayout("my-job")
    files = {
        "video": output_video_uri(s3_settings, "my-job"),
        "report": layout.report,
        "contact-sheet": layout.contact_sheet,
    }
    for name, address in files.items():
        object_store.put_bytes(address, name.encode(), "application/octet-stream")
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a process was started"))
    for name in files:
        answer = client.get(f"/jobs/my-job/{name}")
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
def test_what_is_not_there_is_not_found(client: Any, path: str, said: str) -> None:
    """404 with the sentence of the system, also for a job id that is none."""
    answer = client.get(f"/jobs/{path}")
    assert answer.status_code == 404
    assert said in answer.json()["detail"]


@pytest.mark.parametrize(("error", "status"), [(ConfigurationError("No bucket."), 500), (TransientError("Away."), 503)])
def test_a_store_that_fails_is_no_missing_file(
    client: Any, monkeypatch: pytest.MonkeyPatch, error: Exception, status: int
) -> None:
    """A wrong setting and a store that is away have their own answers, with the reason."""

    def fail(*_: Any) -> str:
        raise error

    monkeypatch.setattr(JobLinks, "url", fail)
    answer = client.get("/jobs/my-job/video")
    assert (answer.status_code, answer.json()["detail"]) == (status, str(error))
