"""Check that one command starts several failed jobs again."""

import json
from typing import Any

import pytest
import sqlalchemy as sa
import typer
from typer.testing import CliRunner, Result

from s2v_tasks.cli.airflow_api import AirflowApi
from s2v_tasks.cli.job_control import retry as retry_command
from s2v_tasks.errors import ConfigurationError, PermanentError
from s2v_tasks.metadata.store import MetadataStore
from s2v_tasks.settings import load_settings

REQUEST = {"image_uri": "s3://bucket/a.png", "audio_uri": "s3://bucket/a.mp3", "prompt": "Hello.", "num_clip": None}
JOBS = {"zoe": 75, "old-input": 65, "anna": 75, "wrong-setting": 78, "silent": None}


class Airflow:
    """An Airflow whose runs of failed jobs have failed."""

    def __init__(self) -> None:
        self.triggered: list[tuple[str, dict[str, Any]]] = []
        self.refuses: str | None = None
        self.refusal = PermanentError("Airflow refuses the request: no")

    def run(self, run_id: str) -> dict[str, Any] | None:
        return {"state": "failed", "conf": {}} if run_id in JOBS else None

    def trigger(self, run_id: str, conf: dict[str, Any]) -> bool:
        if conf["job_id"] == self.refuses:
            raise self.refusal
        self.triggered.append((run_id, conf))
        return True

    def is_paused(self) -> bool:
        return False


@pytest.fixture
def airflow(postgres_url: str, engine: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> Airflow:
    """Five failed jobs, of which two had met an outage, one that was cancelled and one that runs."""
    monkeypatch.setenv("S2V_DATABASE_URL", postgres_url)
    load_settings.cache_clear()
    metadata = MetadataStore(engine)
    for job_id, code in JOBS.items():
        metadata.jobs.enqueue(job_id, REQUEST | {"labels": {"team": job_id[0]}})
        if code is not None:
            metadata.events.record(job_id, "step_failed", step="stitch", detail={"error": "e", "exit_code": code})
        metadata.jobs.fail(job_id, "stitch: e")
    for job_id in ("stopped", "at-work"):
        metadata.jobs.enqueue(job_id, REQUEST)
        metadata.events.record(job_id, "step_failed", step="stitch", detail={"error": "e", "exit_code": 75})
    metadata.jobs.request_cancel("stopped")
    metadata.jobs.cancel("stopped")
    airflow = Airflow()
    monkeypatch.setattr(AirflowApi, "from_settings", lambda _settings: airflow)
    return airflow


def retry(*arguments: str) -> Result:
    """Run the command alone, because the whole program would configure logs for the test process."""
    command = typer.Typer()
    command.command()(retry_command)
    return CliRunner().invoke(command, arguments)


def test_all_jobs_that_met_an_outage_start_again(airflow: Airflow) -> None:
    """Jobs with code 75, or without a reported reason, start with their own requests, the oldest first."""
    done = retry("--status", "failed", "--code", "75", "--json")
    assert done.exit_code == 0, done.output
    assert [run_id for run_id, _ in airflow.triggered] == ["zoe--2", "anna--2", "silent--2"]
    assert airflow.triggered[1][1] == {name: value for name, value in REQUEST.items() if value is not None} | {
        "job_id": "anna",
        "labels": {"team": "a"},
    }
    outcomes = json.loads(done.stdout)
    assert [(outcome["job_id"], outcome["started"]) for outcome in outcomes] == [
        ("zoe", True), ("anna", True), ("silent", True),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--code", "65"), ["old-input--2"]),
        ((), ["zoe--2", "old-input--2", "anna--2", "wrong-setting--2", "silent--2"]),
        (("--status", "cancelled"), ["stopped"]),
        (("--label", "team=a"), ["anna--2"]),
        (("anna", "old-input"), ["old-input--2", "anna--2"]),
        (("stopped", "zoe"), ["zoe--2", "stopped"]),
        (("zoe", "anna", "--label", "team=a"), ["anna--2"]),
        (("anna", "old-input", "--code", "75"), ["anna--2"]),
        (("--code", "75", "--dry-run"), []),
    ],
)
def test_options_choose_the_jobs(airflow: Airflow, arguments: tuple[str, ...], expected: list[str]) -> None:
    """Exit code, status, label and name select jobs, also combined; a dry run starts none."""
    done = retry(*arguments)
    assert done.exit_code == 0, done.output
    assert [run_id for run_id, _ in airflow.triggered] == expected
    assert f"{len(expected)} of" in done.output


def test_a_job_that_is_refused_keeps_no_other_from_its_start(airflow: Airflow) -> None:
    """The other jobs start; the exit code and the line of the job report the refusal."""
    airflow.refuses = "zoe"
    done = retry("--code", "75")
    assert done.exit_code == 65
    assert "zoe Airflow refuses the request: no" in done.output
    assert [run_id for run_id, _ in airflow.triggered] == ["anna--2", "silent--2"]


def test_a_wrong_configuration_ends_the_command_at_the_first_job(airflow: Airflow) -> None:
    """A wrong account or address is the error of the command: it would refuse every job."""
    airflow.refuses, airflow.refusal = "zoe", ConfigurationError("S2V_AIRFLOW_URL is wrong.")
    assert retry("--code", "75").exception is airflow.refusal
    assert airflow.triggered == []


def test_a_job_that_did_not_fail_is_named(airflow: Airflow) -> None:
    """The message has each named job that cannot start again, with its status, and no job is started."""
    done = retry("anna", "at-work", "nobody")
    assert isinstance(done.exception, PermanentError)
    assert "at-work is queued, nobody does not exist: expected jobs that are failed or canc" in str(done.exception)
    assert airflow.triggered == []


def test_a_status_that_is_given_holds_for_named_jobs_too(airflow: Airflow) -> None:
    """With --status failed a cancelled job is refused."""
    done = retry("stopped", "--status", "failed")
    assert isinstance(done.exception, PermanentError)
    assert "stopped is cancelled: expected jobs that are failed." in str(done.exception)
