"""Check submission: the same request is the same job, through Airflow or the drop folder."""

import json
import shutil
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from s2v_tasks.cli.submit import SubmitOptions, report, start, submit, submit_request
from s2v_tasks.errors import ConfigurationError, JobTakenError, PermanentError
from s2v_tasks.ingestion.drop_folder import DropTexts, folders, request_of_drop
from s2v_tasks.metadata.session import create_engine
from s2v_tasks.metadata.store import MetadataStore
from s2v_tasks.schemas.request import Request
from s2v_tasks.settings import Settings, load_settings
from s2v_tasks.storage.layout import drop_folder_uri
from s2v_tasks.storage.s3 import ObjectStore

SAMPLES = Path(__file__).parents[2] / "samples"
REQUEST = Request(image_uri="s3://bucket/a.png", audio_uri="s3://bucket/a.mp3", prompt="Hello.", labels={"team": "a"})


class Runs:
    """The runs of an Airflow as `start` uses them."""

    def __init__(self, *, paused: bool = False) -> None:
        self.runs: dict[str, dict[str, Any]] = {}
        self.paused = paused

    def is_paused(self) -> bool:
        return self.paused

    def unpause(self) -> None:
        self.paused = False

    def run(self, run_id: str) -> dict[str, Any] | None:
        return self.runs.get(run_id)

    def trigger(self, run_id: str, conf: dict[str, Any]) -> bool:
        self.runs[run_id] = {"conf": conf, "state": "queued"}
        return True


def test_a_request_is_started_once_and_again_only_after_a_failure() -> None:
    """While a job runs, and after its success, nothing starts; a failed job gets another run."""
    airflow = Runs()
    api: Any = airflow
    assert [start(api, "talk", REQUEST)["started"] for _ in range(2)] == [True, False]
    airflow.runs["talk"]["state"] = "failed"
    assert [start(api, "talk", REQUEST)["run_id"] for _ in range(2)] == ["talk--2", "talk--2"]
    airflow.runs["talk--2"]["state"] = "success"
    outcome = start(api, "talk", REQUEST)
    assert (outcome["started"], outcome["run_state"]) == (False, "success")
    assert {run["conf"]["job_id"] for run in airflow.runs.values()} == {"talk"}


@pytest.mark.parametrize("state", ["queued", "running", "success"])
def test_a_job_id_belongs_to_one_request(state: str) -> None:
    """Another request under the same id is refused with the fields that differ, unless the job has failed."""
    airflow = Runs()
    api: Any = airflow
    start(api, "talk", REQUEST)
    airflow.runs["talk"]["state"] = state
    other = REQUEST.model_copy(update={"prompt": "Bye.", "labels": {}})
    with pytest.raises(JobTakenError, match="other values of labels, prompt"):
        start(api, "talk", other)
    airflow.runs["talk"]["state"] = "failed"
    assert start(api, "talk", other)["run_id"] == "talk--2"


def test_a_paused_dag_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    """The message says how to unpause the DAG; `--unpause` does so, also for a request that was submitted before."""
    airflow = Runs(paused=True)
    api: Any = airflow
    outcome = start(api, "talk", REQUEST)
    assert (outcome["started"], outcome["dag_is_paused"]) == (True, True)
    report(outcome, as_json=False)
    said = " ".join(capsys.readouterr().out.split())
    assert "talk queued in Airflow" in said
    assert "It waits: the DAG speech_to_video is paused in Airflow" in said
    airflow.runs["talk"]["state"] = "success"
    report(start(api, "talk", REQUEST), as_json=False)
    assert "paused" not in capsys.readouterr().out
    airflow.runs["talk"]["state"] = "queued"
    outcome = start(api, "talk", REQUEST, unpause=True)
    assert (outcome["started"], outcome["dag_is_paused"], airflow.paused) == (False, False, False)
    report(outcome, as_json=False)
    assert "paused" not in capsys.readouterr().out


def test_an_id_that_another_job_has_is_refused_before_airflow_is_asked(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job id in the metadata store is refused, also if Airflow does not know the job."""
    monkeypatch.setenv("S2V_DATABASE_URL", postgres_url)
    load_settings.cache_clear()
    engine = create_engine(postgres_url)
    MetadataStore(engine).jobs.enqueue("talk", REQUEST.model_dump() | {"num_clip": 3})
    engine.dispose()
    options = SubmitOptions("api", watch=False, unpause=False, as_json=True)
    with pytest.raises(JobTakenError, match="other values of num_clip, prompt"):
        submit_request("talk", REQUEST.model_copy(update={"prompt": "Bye.", "num_clip": 2}), options)
    with pytest.raises(ConfigurationError, match="S2V_AIRFLOW_URL"):  # a form may fill in the same
        submit_request("talk", REQUEST, options)


def test_local_files_go_through_the_drop_folder_without_airflow(
    s3_settings: Settings, object_store: ObjectStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The files become a complete drop under any names, and submitting again changes nothing."""
    image, audio = object_store.uri("Fotos für Anna/Über uns 🎬 #1?.jpg"), tmp_path / "Rede für Anna 🎬.mp3"
    shutil.copy(SAMPLES / "speech.mp3", audio)
    arguments = {"image": image, "audio": str(audio), "prompt": "Hello."}
    outcomes = []
    for _ in range(2):
        with pytest.raises(typer.Exit) as done:
            submit(**arguments, num_clip=1, labels=["team=news"], via="drop", as_json=True)
        assert done.value.exit_code == 0
        outcomes.append(json.loads(capsys.readouterr().out))
    assert outcomes[0] == outcomes[1]
    incoming = f"{drop_folder_uri(s3_settings)}/incoming"
    (folder,) = folders(object_store.listing(f"{incoming}/"), incoming)
    assert folder.is_ready(datetime.now(UTC), settle_seconds=60, abandoned_seconds=60)
    texts = DropTexts(marker=object_store.get_bytes(outcomes[0]["dropped_as"]), prompt=None)
    taken = request_of_drop(folder, texts, folder.uri, max_input_bytes=10**9)
    assert taken.job_id == outcomes[0]["job_id"]
    assert taken.job_id.startswith("rede-f-r-anna-")
    assert taken.request.image_uri == image
    assert (taken.request.num_clip, taken.request.labels) == (1, {"team": "news"})
    head = object_store.head(taken.request.audio_uri)
    assert head is not None
    assert head.size_bytes == (SAMPLES / "speech.mp3").stat().st_size


def test_a_drop_for_a_job_that_exists_is_not_written(
    s3_settings: Settings,
    object_store: ObjectStore,
    postgres_url: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The sweep would refuse it: the status of the job is shown, and a failed job is an error with the remedy."""
    monkeypatch.setenv("S2V_DATABASE_URL", postgres_url)
    load_settings.cache_clear()
    engine = create_engine(postgres_url)
    jobs = MetadataStore(engine).jobs
    jobs.enqueue("talk", REQUEST.model_dump(mode="json"))
    options = SubmitOptions("drop", watch=False, unpause=False, as_json=True)
    assert submit_request("talk", REQUEST, options) == 0
    assert json.loads(capsys.readouterr().out) == {
        "job_id": "talk", "dropped_as": None, "started": False, "status": "queued"
    }  # fmt: skip
    assert submit_request("talk", REQUEST, replace(options, as_json=False)) == 0
    assert "talk existed already, it is queued" in capsys.readouterr().out
    jobs.fail("talk", "Clip 0 is black.")
    engine.dispose()
    with pytest.raises(PermanentError, match=r"Job talk is failed: .* `s2v retry talk`"):
        submit_request("talk", REQUEST, options)
    assert not list(object_store.listing(""))


def test_an_invalid_job_id_is_refused_before_anything_is_uploaded(object_store: ObjectStore) -> None:
    """The message is that of the package, not that of Airflow's form."""
    app = typer.Typer()
    app.command()(submit)
    files = ["--image", str(SAMPLES / "portrait.jpg"), "--audio", str(SAMPLES / "speech.mp3"), "--prompt", "Hello."]
    with pytest.raises(PermanentError, match="job id 'A_B': expected 3 to 63"):
        CliRunner().invoke(app, [*files, "--job-id", "A_B"], catch_exceptions=False)
    assert not list(object_store.listing(""))


def test_a_bad_request_is_refused_before_anything_is_uploaded(s3_settings: Settings, object_store: ObjectStore) -> None:
    """A bad request leaves nothing in the store."""
    files = {"image": str(SAMPLES / "portrait.jpg"), "audio": str(SAMPLES / "speech.mp3")}
    with pytest.raises(PermanentError, match="prompt is missing"):
        submit(**files)
    with pytest.raises(PermanentError, match=r"nowhere\.wav' is not a file"):
        submit(**files | {"audio": "nowhere.wav"}, prompt="Hello.")
    assert not list(object_store.listing(f"{s3_settings.data_uri}/"))
