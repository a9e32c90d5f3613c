"""Check the actions of an editor: they start and end runs in Airflow, and leave an event with the user's name."""

import html
import json
import re
from pathlib import Path
from typing import Any

import pytest

from s2v_tasks.metadata.store import MetadataStore
from s2v_tasks.schemas.events import JobEvent
from s2v_tasks.settings import load_settings
from s2v_tasks.storage.s3 import ObjectStore
from s2v_tasks.web.services import services
from tests.web.airflow_runs import begin, end, runs, skipped_tasks
from tests.web.conftest import Login
from tests.web.sample_job import REQUEST, add_job

SAMPLES = Path(__file__).parents[1] / "samples"


def actions(metadata: MetadataStore, job_id: str) -> list[tuple[str, str]]:
    job = metadata.jobs.get(job_id)
    events = job.events if job else ()
    return [(e.detail["user"], e.detail["action"]) for e in events if e.event == JobEvent.USER_ACTION]


def test_a_new_job_starts_once(login: Login) -> None:
    """The run has request and user; the same fields again start nothing; the job id can be chosen."""
    editor = login("edith")
    fields = REQUEST | {"labels": {"team": "news"}, "sample_steps": 4, "size": ""}
    answer = editor.post("/s2v/new/start", json=fields)
    assert answer.status_code == 201
    job_id = answer.json()["job_id"]
    assert job_id.startswith("speech-")
    conf = REQUEST | {"labels": {"team": "news"}, "sample_steps": 4, "job_id": job_id}
    assert runs() == {job_id: ("queued", conf, "edith")}
    again = editor.post("/s2v/new/start", json=fields)
    assert (again.status_code, again.json()["started"]) == (200, False)
    assert editor.post("/s2v/new/start", json=fields | {"job_id": "my-video"}).json()["run_id"] == "my-video"
    assert len(runs()) == 2


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"infer_frames": 50}, "Frames per clip 50: expected a multiple of 4 from 16 to 120"),
        ({"prompt": " "}, "prompt ' ': is blank"),
        ({"audio_uri": "/etc/passwd"}, "Speech '/etc/passwd': expected an S3 URI"),
        ({"job_id": "../x"}, "name '../x': expected 3 to 63 lower-case letters, digits and dashes"),
        ({"nonsense": 1}, "nonsense is not a field of a request"),
    ],
)
def test_a_bad_request_starts_nothing(login: Login, fields: dict[str, Any], said: str) -> None:
    """A bad request answers 400 with the expectation and the label that the form shows for the field."""
    answer = login("edith").post("/s2v/new/start", json=REQUEST | fields)
    assert answer.status_code == 400
    assert said in answer.json()["detail"]
    assert runs() == {}


def test_a_name_that_is_taken_by_another_request_is_refused(
    login: Login, metadata: MetadataStore, store: ObjectStore
) -> None:
    """A job id of another request is refused, and its job does not change."""
    add_job(metadata, store, "talk")
    answer = login("edith").post("/s2v/new/start", json=REQUEST | {"prompt": "Another.", "job_id": "talk"})
    assert answer.status_code == 400
    assert "exists with other values of prompt" in answer.json()["detail"]
    assert runs() == {}


def test_cancel_ends_the_run_and_asks_the_steps(login: Login, metadata: MetadataStore, store: ObjectStore) -> None:
    """The tasks of the run are skipped, its steps see the cancel, and the history names the user."""
    editor = login("edith")
    editor.post("/s2v/new/start", json=REQUEST | {"job_id": "talk"})
    editor.post("/s2v/new/start", json=REQUEST | {"job_id": "other"})
    add_job(metadata, store, "talk")
    answer = editor.post("/s2v/job/talk/cancel")
    assert (answer.status_code, answer.json()["ended_runs"]) == (202, ["talk"])
    assert skipped_tasks("talk") >= {"stage_inputs", "plan_clips", "publish"}
    assert "close_job" not in skipped_tasks("talk")  # a teardown still runs
    assert skipped_tasks("other") == set()
    job = metadata.jobs.get("talk")
    assert job is not None
    assert job.cancel_requested_at is not None
    assert ("edith", "cancelled this video") in actions(metadata, "talk")
    assert "It is being cancelled" in editor.get("/s2v/job/talk").text


def test_a_job_in_the_queue_is_cancelled_at_once(login: Login, metadata: MetadataStore) -> None:
    """A job without a running step is cancelled by the action itself."""
    metadata.jobs.enqueue("talk", REQUEST)
    assert login("edith").post("/s2v/job/talk/cancel").status_code == 202
    job = metadata.jobs.get("talk")
    assert job is not None
    assert job.status == "cancelled"
    assert login("edith").post("/s2v/job/talk/cancel").status_code == 409


def test_a_failed_job_whose_run_goes_on_is_cancelled(login: Login, metadata: MetadataStore, store: ObjectStore) -> None:
    """The page offers the cancel until the run is closed, and the cancel ends the run."""
    editor = login("edith")
    editor.post("/s2v/new/start", json=REQUEST | {"job_id": "talk"})
    metadata.jobs.enqueue("talk", REQUEST, dag_run_id="talk")
    metadata.jobs.fail("talk", "Clip 0 is black.")
    assert 'data-action="ask-cancel"' in editor.get("/s2v/job/talk").text
    answer = editor.post("/s2v/job/talk/cancel")
    assert (answer.status_code, answer.json()["ended_runs"]) == (202, ["talk"])
    job = metadata.jobs.get("talk")
    assert job is not None
    assert job.status == "cancelled"
    assert 'data-action="ask-cancel"' not in editor.get("/s2v/job/talk").text


@pytest.mark.parametrize(("status", "label"), [("failed", "failed"), ("cancelled", "was cancelled")])
def test_a_new_start_that_has_not_begun_is_shown_and_cancelled(
    login: Login, metadata: MetadataStore, store: ObjectStore, status: str, label: str
) -> None:
    """A job that waits to start again is queued on all pages; its cancel ends only the new run."""
    editor = login("edith")
    editor.post("/s2v/new/start", json=REQUEST | {"job_id": "talk"})
    metadata.jobs.enqueue("talk", REQUEST, dag_run_id="talk")
    if status == "failed":
        metadata.jobs.fail("talk", "Clip 0 is black.")
    else:
        metadata.jobs.request_cancel("talk")
        metadata.jobs.cancel("talk", "Clip 0 is black.")
    metadata.events.record("talk", JobEvent.STEP_FINISHED, step="close_job")
    end("talk")
    assert editor.post("/s2v/job/talk/cancel").status_code == 409
    assert editor.post("/s2v/job/talk/retry").json()["run_id"] == "talk--2"

    services().states._kept.clear()
    assert editor.get("/s2v/job/talk/state.json").json()["status"] == "queued"
    assert 'data-status="queued"' in editor.get("/s2v/videos").text
    shown = editor.get("/s2v/job/talk").text
    assert "data-ended" not in shown
    assert f"Its earlier start {label}: Clip 0 is black." in shown
    assert "It is being cancelled" not in shown
    assert 'data-action="retry"' not in shown
    assert 'data-action="ask-cancel">' in shown  # not disabled

    assert editor.post("/s2v/job/talk/cancel").json()["ended_runs"] == ["talk--2"]
    assert ("edith", "cancelled the new start of this video") in actions(metadata, "talk")
    assert skipped_tasks("talk--2") >= {"stage_inputs", "publish"}
    ended = editor.get("/s2v/job/talk").text
    assert 'data-action="retry"' in ended
    assert "data-ended" in ended


def test_a_failed_job_starts_again(login: Login, metadata: MetadataStore, store: ObjectStore) -> None:
    """A failed job gets another run with its own request; a running job, and one whose run ends, are refused."""
    editor = login("edith")
    editor.post("/s2v/new/start", json=REQUEST | {"job_id": "talk"})
    metadata.jobs.enqueue("talk", REQUEST, dag_run_id="talk")
    add_job(metadata, store, "talk")
    assert editor.post("/s2v/job/talk/retry").status_code == 409
    metadata.jobs.fail("talk", "A node was lost.")
    begin("talk")
    refused = editor.post("/s2v/job/talk/retry")
    assert (refused.status_code, "has not ended in Airflow: try again" in refused.text) == (409, True)
    end("talk")
    answer = editor.post("/s2v/job/talk/retry")
    assert (answer.status_code, answer.json()["run_id"]) == (201, "talk--2")
    assert runs()["talk--2"] == ("queued", REQUEST | {"job_id": "talk"}, "edith")
    assert actions(metadata, "talk")[-1] == ("edith", "started this video again")


def test_a_rerun_is_a_new_job_with_the_changes(login: Login, metadata: MetadataStore, store: ObjectStore) -> None:
    """A rerun names its parent and clip; one without a change, or from a clip beyond the plan, is refused."""
    layout = add_job(metadata, store, "talk")
    store.put_bytes(layout.request, json.dumps(REQUEST).encode(), "application/json")
    editor = login("edith")
    answer = editor.post("/s2v/job/talk/rerun", json={"from_clip": 1, "prompt": "She laughs.", "base_seed": 3})
    assert answer.status_code == 201
    job_id = answer.json()["job_id"]
    changes = {"prompt": "She laughs.", "base_seed": 3, "parent_job_id": "talk", "from_clip": 1, "job_id": job_id}
    assert runs()[job_id][1] == REQUEST | changes
    for changes, said in (
        ({"from_clip": 1, "prompt": REQUEST["prompt"], "base_seed": 7}, "Nothing is changed"),
        ({"from_clip": 2, "prompt": "She laughs."}, "From clip 3: expected 1 to 2."),
    ):
        refused = editor.post("/s2v/job/talk/rerun", json=changes)
        assert refused.status_code == 400
        assert said in refused.json()["detail"]
    assert len(runs()) == 1


def test_an_upload_is_stored_by_its_content(login: Login, store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name of a file is never a path; a file that is too large is refused, also without an announced size."""
    editor = login("edith")
    answer = editor.post("/s2v/new/upload", params={"name": "../../ä b.png"}, content=b"picture")
    uri = answer.json()["uri"]
    assert uri.startswith(store.uri("uploads/"))
    assert uri.endswith("/b.png")
    assert ".." not in uri
    assert store.get_bytes(uri) == b"picture"
    monkeypatch.setenv("S2V_MAX_INPUT_BYTES", "10")
    load_settings.cache_clear()
    services.cache_clear()
    assert editor.post("/s2v/new/upload?name=a.png", content=b"x" * 11).status_code == 413
    assert editor.post("/s2v/new/upload?name=a.png", content=iter([b"x" * 6] * 2)).status_code == 413
    assert editor.post("/s2v/new/upload?name=a.png", content=b"x" * 10).status_code == 200
    assert editor.post("/s2v/new/upload?name=a.png", content=b"").status_code == 400


def test_the_cost_is_known_before_a_job_starts(
    login: Login, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plan of uploaded files is shown with its cost, or with the reason of its refusal."""
    monkeypatch.setenv("S2V_MODEL", "tiny")
    monkeypatch.setenv("S2V_GPU", "cpu")
    editor = login("edith")
    uris = {}
    for field, name in (("image_uri", "portrait.jpg"), ("audio_uri", "speech.mp3")):
        content = (SAMPLES / name).read_bytes()
        uris[field] = editor.post("/s2v/new/upload", params={"name": name}, content=content).json()["uri"]
    plan = editor.post("/s2v/new/plan", json=uris | {"size": "128*192", "sample_steps": 4, "max_cost": 1e-9}).json()
    assert (plan["num_clip"], plan["size"]) == (2, "128 × 192")
    assert plan["cost"].endswith("USD")
    assert "(Maximum cost of the request)" in plan["problem"]
    assert (
        editor
        .post("/s2v/new/plan", json=uris | {"num_clip": 1})
        .json()["warnings"][0]
        .startswith("This is a preview: Number of clips 1 covers")
    )
    damaged = editor.post("/s2v/new/plan", json=uris | {"image_uri": uris["audio_uri"]})
    assert damaged.status_code == 400
    assert "The image speech.mp3 is not a readable picture (expected PNG, JPEG or WebP)" in damaged.json()["detail"]
    assert runs() == {}


def test_a_copy_opens_the_form_with_the_request(login: Login, metadata: MetadataStore, store: ObjectStore) -> None:
    """The form is filled with prompt, inputs and settings of the job, without the fields of a rerun."""
    add_job(metadata, store, "talk", sample_steps=17, parent_job_id="before", from_clip=1)
    text = login("edith").get("/s2v/new?from=talk").text
    assert 'value="17"' in text
    assert REQUEST["prompt"] in text
    assert REQUEST["audio_uri"] in text
    assert "before" not in text


@pytest.mark.parametrize("preset", ["gone", ["gone"]])
def test_a_copy_says_that_its_preset_no_longer_exists(login: Login, metadata: MetadataStore, preset: Any) -> None:
    """The missing preset stays selected, so that no other one is used until the user chooses it."""
    metadata.jobs.enqueue("talk", REQUEST | {"preset": preset})
    form = html.unescape(login("edith").get("/s2v/new?from=talk").text)
    assert (
        re.findall(r"<option value=.(?:[a-z]*|..gone..). selected>([^<]*)<", form)[0] == f"{preset} (no longer exists)"
    )


@pytest.mark.parametrize("labels", ["team=news", ["team"], 7])
def test_a_copy_of_a_job_with_damaged_labels_has_none(login: Login, metadata: MetadataStore, labels: Any) -> None:
    """Labels that are no JSON object, as a refused request may have, leave the field of the form empty."""
    metadata.jobs.enqueue("talk", REQUEST | {"labels": labels})
    answer = login("edith").get("/s2v/new?from=talk")
    assert answer.status_code == 200
    assert '<input name="labels" value=""' in answer.text


@pytest.mark.parametrize(
    ("gpu", "data_uri", "is_filled"),
    [("cpu", "s3://s2v", True), ("cpu", "s3://own", False), ("h100-sxm", "s3://s2v", False)],
)
def test_the_form_is_filled_with_the_demo_on_a_cpu(
    login: Login, monkeypatch: pytest.MonkeyPatch, gpu: str, data_uri: str, is_filled: bool
) -> None:
    """On a CPU the form is filled with the demo, without its files in a bucket of its own; with a GPU it is empty."""
    monkeypatch.setenv("S2V_GPU", gpu)
    monkeypatch.setenv("S2V_DATA_URI", data_uri)
    load_settings.cache_clear()
    services.cache_clear()
    form = login("edith").get("/s2v/new").text
    assert ("s3://s2v/samples/portrait.jpg" in form) is is_filled
    assert ("Filled with the samples" in form) is is_filled
    assert ("128*192" in form) is (gpu == "cpu")
    assert 'name="max_retakes"' in form


def test_a_copy_keeps_what_the_form_does_not_show(login: Login, metadata: MetadataStore, store: ObjectStore) -> None:
    """The new job gets solver, guided steps and priority of the copied one, but not its webhook."""
    more = {"sample_solver": "euler", "guide_steps": [0, 2], "priority": "high", "webhook_url": "https://example.com/a"}
    add_job(metadata, store, "talk", **more)
    form = login("edith").get("/s2v/new?from=talk").text
    others = html.unescape(re.search(r'data-others="([^"]*)"', form)[1])
    assert json.loads(others) == {"sample_solver": "euler", "guide_steps": [0, 2], "priority": "high"}
    assert "So are Guided steps, Solver, Priority." in form
