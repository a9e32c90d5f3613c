"""Check the messages about a job whose run waits in Airflow."""

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from s2v_tasks.cli import watch
from s2v_tasks.cli.airflow_api import HOW_TO_UNPAUSE
from s2v_tasks.cli.awaited_runs import AwaitedRun, Waiting, find_run
from s2v_tasks.cli.job_control import cancel
from s2v_tasks.cli.jobs import job
from s2v_tasks.cli.watch import watch_job
from s2v_tasks.errors import ConfigurationError, JobTakenError, PermanentError, TransientError
from s2v_tasks.metadata.session import create_engine
from s2v_tasks.metadata.store import MetadataStore
from s2v_tasks.settings import load_settings

RUN = AwaitedRun("talk", "talk--2", "queued", dag_is_paused=True)


class Airflow:
    """The runs of an Airflow, and whether its DAG is paused."""

    def __init__(self) -> None:
        self.paused = True
        self.runs: list[dict[str, Any]] = []

    def add(self, run_id: str, job_id: str, state: str) -> None:
        self.runs.append({"dag_run_id": run_id, "state": state, "conf": {"job_id": job_id}})

    def run(self, run_id: str) -> dict[str, Any] | None:
        return next((run for run in self.runs if run["dag_run_id"] == run_id), None)

    def active_runs(self) -> list[dict[str, Any]]:
        return [run for run in reversed(self.runs) if run["state"] in {"queued", "running"}]

    def fail(self, run_id: str) -> None:
        for run in self.runs:
            if run["dag_run_id"] == run_id:
                run["state"] = "failed"

    def is_paused(self) -> bool:
        return self.paused


@pytest.fixture
def airflow(monkeypatch: pytest.MonkeyPatch) -> Airflow:
    """An Airflow that is configured."""
    known = Airflow()
    monkeypatch.setattr("s2v_tasks.cli.airflow_api.AirflowApi.from_settings", lambda _: known)
    monkeypatch.setenv("S2V_AIRFLOW_URL", "http://127.0.0.1:1")
    load_settings.cache_clear()
    return known


@pytest.fixture
def metadata(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[MetadataStore]:
    """An empty metadata store, which is that of the settings."""
    monkeypatch.setenv("S2V_DATABASE_URL", postgres_url)
    monkeypatch.setattr(watch, "POLL_SECONDS", 0.0)
    load_settings.cache_clear()
    engine = create_engine(postgres_url)
    yield MetadataStore(engine)
    engine.dispose()


def test_the_run_of_a_job_is_found(airflow: Airflow) -> None:
    """The requested run is found, else the newest that has not ended, else the run with the name of the job."""
    airflow.add("talk", "talk", "failed")
    assert find_run("talk") == AwaitedRun("talk", "talk", "failed", dag_is_paused=True)
    airflow.add("manual__1", "talk", "running")
    airflow.add("talk--2", "talk", "queued")
    airflow.add("other", "other", "queued")
    airflow.paused = False
    assert find_run("talk") == replace(RUN, dag_is_paused=False)
    assert find_run("talk", "manual__1") == AwaitedRun("talk", "manual__1", "running", dag_is_paused=False)
    assert find_run("talk", "talk--3") is None
    assert find_run("nothing") is None


def test_without_airflow_no_run_is_found() -> None:
    """Without an address of Airflow, no request is sent and no run is found."""
    assert find_run("talk") is None


def test_a_queued_run_is_shown_before_the_job_exists(
    airflow: Airflow, metadata: MetadataStore, capsys: pytest.CaptureFixture[str]
) -> None:
    """`s2v job` shows the state of the run; a run that ended without a job, and no run at all, are errors."""
    airflow.add("talk", "talk", "queued")
    job("talk")
    said = " ".join(capsys.readouterr().out.split())
    assert said.startswith("Job talk waits for the first step of its run talk, which is queued, and the DAG ")
    job("talk", as_json=True)
    assert '"dag_is_paused": true' in capsys.readouterr().out
    airflow.paused = False
    job("talk")
    expected = "Job talk waits for the first step of its run talk, which is queued in Airflow."
    assert " ".join(capsys.readouterr().out.split()) == expected
    for state in ("failed", "success"):
        airflow.runs[0]["state"] = state
        with pytest.raises(TransientError, match=f"Run talk of job talk is {state} in Airflow"):
            job("talk")
    with pytest.raises(PermanentError, match="'nobody' does not exist"):
        job("nobody")
    with pytest.raises(PermanentError, match="'nobody' does not exist"):
        watch_job("nobody", as_json=False)


def test_watch_shows_what_the_job_waits_for(
    airflow: Airflow, metadata: MetadataStore, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each state of the run is printed once, and the job is followed when it starts."""
    answers = iter([RUN, RUN, replace(RUN, dag_is_paused=False), None, RUN])

    def ask() -> AwaitedRun | None:
        answer = next(answers)
        if answer is not None:
            return answer
        if metadata.jobs.get("talk") is None:
            metadata.jobs.enqueue("talk", {})
            metadata.jobs.fail("talk", "The speech is silent.")
        raise TransientError("Airflow is away.")

    assert watch_job("talk", as_json=False, may_come=True, find_run=ask) == 75
    said = capsys.readouterr()
    assert said.err.splitlines() == [RUN.sentence, replace(RUN, dag_is_paused=False).sentence, "Airflow is away."]
    assert "The speech is silent." in said.out


def test_the_refusal_of_a_run_ends_the_watch(metadata: MetadataStore) -> None:
    """The watch ends with the refusal of this run; an earlier end of the job does not end it."""
    metadata.jobs.enqueue("talk", {})
    metadata.jobs.succeed("talk", "s3://out/talk.mp4", "ab" * 32)
    record = metadata.jobs.get("talk")
    assert record is not None
    failed = replace(RUN, state="failed")

    def follow() -> int:
        ended_before = record.finished_at if record else None
        return watch_job("talk", as_json=False, ended_before=ended_before, may_come=True, find_run=lambda: failed)

    with pytest.raises(TransientError, match="Run talk--2 of job talk is failed"):
        follow()
    metadata.events.record("talk", "request_refused", detail={"dag_run_id": "talk--3", "error": "Not this one."})
    with pytest.raises(TransientError):
        follow()
    metadata.events.record(
        "talk", "request_refused", detail={"dag_run_id": "talk--2", "error": "Other values of prompt."}
    )
    with pytest.raises(JobTakenError, match=r"Other values of prompt\."):
        follow()


def test_no_run_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is printed before the first poll or without a run."""
    waiting = Waiting(lambda: None)
    waiting.report(None)
    waiting.ask()
    waiting.report(None)
    assert capsys.readouterr().err == ""
    assert HOW_TO_UNPAUSE in RUN.sentence


def test_a_job_is_not_called_unknown_while_airflow_does_not_answer(
    airflow: Airflow, metadata: MetadataStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message about Airflow also says that the database has no such job. A watch asks again."""
    answers = 0

    def no_answer() -> list[dict[str, Any]]:
        nonlocal answers
        answers += 1
        if answers < 3:
            raise TransientError("Airflow does not answer.")
        return []

    monkeypatch.setattr(airflow, "active_runs", no_answer)
    with pytest.raises(TransientError, match=r"Job 'talk' is not in the database.*Airflow does not answer\."):
        job("talk")
    with pytest.raises(PermanentError, match="'talk' does not exist"):
        watch_job("talk", as_json=False)
    assert answers == 3


@pytest.mark.parametrize("state", ["queued", "running"])
def test_the_waiting_start_of_a_failed_job_is_cancelled(
    airflow: Airflow, metadata: MetadataStore, capsys: pytest.CaptureFixture[str], state: str
) -> None:
    """The run whose first step has not begun ends; the job stays failed. The run that has failed is not ended."""
    airflow.add("talk", "talk", "running")
    metadata.jobs.enqueue("talk", {}, dag_run_id="talk")
    metadata.jobs.fail("talk", "Clip 0 is black.")
    metadata.events.record("talk", "step_finished", step="close_job")
    with pytest.raises(PermanentError, match="nothing to cancel"):
        cancel("talk")
    airflow.add("talk--2", "talk", state)
    airflow.add("other", "other", "queued")
    cancel("talk", as_json=True)
    outcome = json.loads(capsys.readouterr().out)
    assert (outcome["status"], outcome["ended_runs"]) == ("failed", ["talk--2"])
    assert [run["state"] for run in airflow.runs] == ["running", "failed", "queued"]
    assert metadata.jobs.recent()[0].reason == "Clip 0 is black."


@pytest.fixture
def failed(metadata: MetadataStore, airflow: Airflow) -> MetadataStore:
    """A job that has failed; the last task of its run still works."""
    airflow.add("talk", "talk", "running")
    metadata.jobs.enqueue("talk", {}, dag_run_id="talk")
    metadata.jobs.fail("talk", "Clip 0 is black.")
    return metadata


def test_the_new_start_of_a_failed_job_is_shown(
    airflow: Airflow, failed: MetadataStore, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`s2v job` names the run that will start the job again. Without an answer of Airflow the job is shown too."""

    def shown(as_json: bool = False) -> str:
        job("talk", as_json=as_json)
        return " ".join(capsys.readouterr().out.split())

    assert "will start again" not in shown()
    assert json.loads(shown(as_json=True))["new_start"] is None
    airflow.add("talk--2", "talk", "queued")
    assert "Clip 0 is black." in shown()
    assert "It will start again. Job talk waits for the first step of its run talk--2, which is queued" in shown()
    assert json.loads(shown(as_json=True))["new_start"] == {"run_id": "talk--2", "run_state": "queued"}

    def no_answer() -> list[dict[str, Any]]:
        raise TransientError("Airflow does not answer.")

    monkeypatch.setattr(airflow, "active_runs", no_answer)
    job("talk")
    said = capsys.readouterr()
    assert "Clip 0 is black." in said.out
    assert said.err.strip() == "Airflow does not answer. Whether the job will start again is not known."


def test_a_watch_follows_the_new_start_of_a_failed_job(
    airflow: Airflow, failed: MetadataStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The end before the new start is not the end of the watch; without a new start it is."""
    assert watch_job("talk", as_json=False) == 75
    airflow.add("talk--2", "talk", "queued")

    def starts(_: float) -> None:
        failed.jobs.enqueue("talk", {}, dag_run_id="talk--2")
        failed.jobs.start("talk")
        failed.jobs.succeed("talk", "s3://out/talk.mp4", "ab" * 32)

    capsys.readouterr()
    monkeypatch.setattr("s2v_tasks.cli.watch.time.sleep", starts)
    assert watch_job("talk", as_json=False) == 0
    assert "black" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "error", [TransientError("Airflow is away."), ConfigurationError("Airflow does not permit it.")]
)
def test_a_job_that_only_airflow_knows_is_not_called_unknown_by_cancel(
    airflow: Airflow, failed: MetadataStore, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Without the answer of Airflow it is not known whether a run of the job waits: its error is that of the cancel."""

    def refuse(_: str) -> None:
        raise error

    failed.events.record("talk", "step_finished", step="close_job")
    airflow.add("other", "other", "queued")
    airflow.add("talk--2", "talk", "queued")
    monkeypatch.setattr(airflow, "fail", refuse)
    for job_id in ("other", "talk"):
        with pytest.raises(type(error), match=str(error)):
            cancel(job_id)
