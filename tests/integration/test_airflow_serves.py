"""Check the embedded Airflow with its four processes, as `s2v up` starts it."""

# ruff: noqa: S310 - the address is that of the server under test

import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from s2v_tasks.cli.job_control import cancel
from s2v_tasks.cli.submit import submit
from s2v_tasks.embedded.airflow import AirflowInstallation
from s2v_tasks.embedded.postgres import PostgresServer
from s2v_tasks.metadata.session import engine_from_settings
from s2v_tasks.metadata.store import MetadataStore
from s2v_tasks.schemas.preset import load_demo_request
from s2v_tasks.schemas.request import Request
from s2v_tasks.settings import Settings, config_dir, load_settings

SAMPLES = Path(__file__).parents[1] / "samples"


@pytest.fixture(scope="module")
def airflow(stack_home: Path) -> Iterator[AirflowInstallation]:
    installation = AirflowInstallation(stack_home)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("S2V_HOME", str(stack_home))
        patch.setenv("http_proxy", "http://127.0.0.1:9")  # of a company; it does not lead to loopback
        load_settings.cache_clear()
        database_url = PostgresServer(stack_home).ensure_database("airflow")
        installation.start(installation.environment(database_url))
    yield installation
    installation.stop()
    assert installation.running() == []


def call(airflow: AirflowInstallation, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(
        f"{airflow.url}/api/v2{path}", data=data, headers={"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        parsed: dict[str, Any] = json.load(answer)
    return parsed


def test_all_parts_are_healthy_and_the_ui_answers(airflow: AirflowInstallation) -> None:
    """Scheduler, triggerer, DAG processor and database are healthy when the start returns."""
    assert set(airflow.health()) >= {"metadatabase", "scheduler", "triggerer", "dag_processor"}
    assert set(airflow.health().values()) == {"healthy"}
    with urllib.request.urlopen(airflow.url, timeout=30) as page:
        assert b"<html" in page.read()


def test_the_form_is_there_and_filled(airflow: AirflowInstallation) -> None:
    """The DAG has no import error; its form has every field of a request, filled with the sample inputs."""
    assert call(airflow, "/importErrors")["total_entries"] == 0
    params = call(airflow, "/dags/speech_to_video/details")["params"]
    assert list(params) == [*Request.model_fields, "job_id"]
    assert params["image_uri"]["value"] == "s3://s2v/samples/portrait.jpg"


def test_a_bad_field_is_refused_before_a_run_exists(airflow: AirflowInstallation) -> None:
    """The API answers 400 with the name of the field, and no run exists."""
    with pytest.raises(urllib.error.HTTPError) as refused:
        call(airflow, "/dags/speech_to_video/dagRuns", {"logical_date": None, "conf": {"infer_frames": 50}})
    with refused.value as answer:
        assert answer.code == 400
        assert "infer_frames" in answer.read().decode()
    assert call(airflow, "/dags/speech_to_video/dagRuns")["total_entries"] == 0


def test_a_run_from_the_form_makes_a_video_and_is_there_after_a_restart(
    airflow: AirflowInstallation, stack: Settings
) -> None:
    """A run from the form ends with one try for each task, and clip 2 waits for clip 1.

    The deferral and the links to files need no setting of Airflow.
    """
    example = load_demo_request(config_dir(stack)) | {
        "num_clip": 2,
        "infer_frames": 16,
        "sample_steps": 2,
        "size": "128*128",
    }
    body = {"logical_date": None, "conf": example | {"job_id": "from-the-form"}}
    run_id = call(airflow, "/dags/speech_to_video/dagRuns", body)["dag_run_id"]
    path = f"/dags/speech_to_video/dagRuns/{urllib.parse.quote(run_id)}"
    deadline = time.monotonic() + 400
    while (state := call(airflow, path)["state"]) not in {"success", "failed"}:
        assert time.monotonic() < deadline, call(airflow, f"{path}/taskInstances")
        time.sleep(1)
    assert state == "success"
    tasks = call(airflow, f"{path}/taskInstances")["task_instances"]
    assert {(task["task_id"], task["try_number"]) for task in tasks if task["try_number"] != 1} == set()
    wait_log = call(airflow, f"{path}/taskInstances/clip.wait/logs/1?map_index=1")["content"]
    assert "DEFERRED" in json.dumps(wait_log)
    check_links(airflow, path)
    engine = engine_from_settings(stack)
    job = MetadataStore(engine).jobs.get("from-the-form")
    engine.dispose()
    assert job is not None
    assert (job.status, [clip.status for clip in job.clips]) == ("succeeded", ["succeeded"] * 2)
    airflow.stop()
    airflow.start(airflow.environment(PostgresServer(airflow.folder.parent).ensure_database("airflow")))
    assert call(airflow, path)["state"] == "success"


def check_links(airflow: AirflowInstallation, run_path: str) -> None:
    """Check that video, report and contact sheet of the run open for a logged-in account and for nobody else."""
    links = call(airflow, f"{run_path}/taskInstances/publish/links")["extra_links"]
    assert list(links) == ["Contact sheet", "Report", "Video"]
    beginnings = []
    for url in links.values():
        with urllib.request.urlopen(url, timeout=60) as answer:
            assert answer.status == 200
            beginnings.append(answer.read(12))
    assert [beginnings[0][:3], beginnings[1][:1], beginnings[2][4:8]] == [b"\xff\xd8\xff", b"{", b"ftyp"]
    assert refusal(links["Video"], Authorization="Bearer stolen") in {401, 403}
    assert refusal(links["Video"].replace("from-the-form", "no-such-job")) == 404


def refusal(url: str, **headers: str) -> int:
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=60)
    with refused.value as answer:
        return answer.code


def test_a_submitted_job_is_cancelled_under_a_worker(
    airflow: AirflowInstallation,
    stack: Settings,
    processes_of: Callable[[str], list[str]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """`s2v submit` starts the job once; `s2v cancel` ends its run and its render within 15 seconds."""
    job_id, engine = "to-be-cancelled", engine_from_settings(stack)
    metadata = MetadataStore(engine)
    fields = {"num_clip": 1, "infer_frames": 16, "sample_steps": 100, "size": "256*256", "job_id": job_id}
    files = {"image": str(SAMPLES / "portrait.jpg"), "audio": str(SAMPLES / "speech.mp3"), "prompt": "A portrait."}
    for started in (True, False):
        with pytest.raises(typer.Exit):
            submit(**files, **fields, as_json=True)
        assert json.loads(capsys.readouterr().out)["started"] is started
    deadline = time.monotonic() + 300
    while not ((job := metadata.jobs.get(job_id)) and job.clips and job.clips[0].progress_step):
        assert time.monotonic() < deadline, call(airflow, f"/dags/speech_to_video/dagRuns/{job_id}/taskInstances")
        time.sleep(0.5)
    asked = time.monotonic()
    cancel(job_id, as_json=True)
    assert json.loads(capsys.readouterr().out)["ended_runs"] == [job_id]
    while any("render-clip" in command for command in processes_of(job_id)):
        time.sleep(0.1)
    assert time.monotonic() - asked < 15
    while call(airflow, f"/dags/speech_to_video/dagRuns/{job_id}")["state"] != "failed":
        assert time.monotonic() < deadline
        time.sleep(0.5)
    job = metadata.jobs.get(job_id)
    engine.dispose()
    assert job is not None
    assert job.status == "cancelled"
