"""Check the start of waiting jobs, by the drop folder and by batches, and the commands of tasks."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowRuntimeError, ErrorType
from airflow.sdk.execution_time import task_runner
from airflow.sdk.execution_time.comms import DRCount, ErrorResponse, GetDRCount, OKResponse, TriggerDagRun
from typer.main import get_command

from s2v_tasks.cli import ingestion
from s2v_tasks.orchestration import command_operators
from s2v_tasks.orchestration.command_operators import BatchSensor, CommandOperator, StartJobsOperator
from tests.dags.test_ingestion_dags import loaded


class Answers:
    """Takes the place of the commands: records each argument list and answers by `script`, command → answer."""

    def __init__(self, script: dict[str, Any]) -> None:
        self.script, self.calls = script, []

    def __call__(self, _task: Any, *arguments: str) -> Any:
        self.calls.append(arguments)
        return self.script[arguments[0]]


class Supervisor:
    """Takes the place of the supervisor of a task: knows which runs exist, and refuses one with `answer`."""

    def __init__(self) -> None:
        self.runs: dict[str, TriggerDagRun] = {}
        self.refused, self.answer = "", {"status_code": 503}
        self.failed_task: str | None = None

    def send(self, message: TriggerDagRun | GetDRCount) -> OKResponse | ErrorResponse | DRCount:
        if isinstance(message, GetDRCount):
            return DRCount(count=sum(run_id in self.runs for run_id in message.run_ids or []))
        if message.run_id == self.refused:
            raise AirflowRuntimeError(ErrorResponse(error=ErrorType.API_SERVER_ERROR, detail=self.answer))
        if message.run_id in self.runs:
            return ErrorResponse(error=ErrorType.DAGRUN_ALREADY_EXISTS)
        self.runs[message.run_id] = message
        return OKResponse(ok=True)


@pytest.fixture
def supervisor(monkeypatch: pytest.MonkeyPatch) -> Supervisor:
    found = Supervisor()
    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", found, raising=False)
    monkeypatch.setattr(command_operators, "first_failed_task", lambda *_: found.failed_task)
    return found


def start() -> dict[str, int]:
    """Run the task `start` of the drop folder."""
    task = loaded("s2v_drop_folder").get_task("start")
    assert isinstance(task, StartJobsOperator)
    return task.execute({"run_id": "scheduled__1"})  # type: ignore[arg-type,typeddict-item]


def commands(monkeypatch: pytest.MonkeyPatch, **script: Any) -> Answers:
    answers = Answers({name.replace("_", "-"): answer for name, answer in script.items()})
    monkeypatch.setattr(command_operators, "run_command", answers)
    return answers


TURNS = [{"job_id": f"job-{n}", "run_id": f"job-{n}", "request": {"prompt": str(n)}} for n in range(3)]
WAITING = {"jobs": TURNS, "waiting": 5, "silent_runs": []}


def test_each_waiting_job_gets_the_run_of_its_name(monkeypatch: pytest.MonkeyPatch, supervisor: Supervisor) -> None:
    """A waiting job gets a run named after it, with request and job id as configuration, and waits no longer."""
    answers = commands(monkeypatch, next_jobs=WAITING, mark_started={})
    assert start() == {"started": 3, "refused": 0, "waiting": 2}
    assert {message.dag_id for message in supervisor.runs.values()} == {"speech_to_video"}
    assert supervisor.runs["job-1"].conf == {"prompt": "1", "job_id": "job-1"}
    assert answers.calls == [("next-jobs",), ("mark-started", "job-0", "job-1", "job-2")]


def test_jobs_start_although_the_sweep_failed(monkeypatch: pytest.MonkeyPatch, supervisor: Supervisor) -> None:
    """A folder that cannot be moved does not keep other jobs waiting, and the run of the DAG still fails."""
    assert loaded("s2v_drop_folder").get_task("start").trigger_rule == "all_done"
    supervisor.failed_task = "sweep"
    commands(monkeypatch, next_jobs=WAITING, mark_started={})
    with pytest.raises(AirflowFailException, match="jobs were started, but the task sweep failed"):
        start()
    assert len(supervisor.runs) == 3


def test_a_run_that_exists_counts_as_started(monkeypatch: pytest.MonkeyPatch, supervisor: Supervisor) -> None:
    """A start that was killed before it recorded its runs is repeated without a second run."""
    answers = commands(monkeypatch, next_jobs=WAITING, mark_started={})
    for _ in range(2):
        start()
    assert len(supervisor.runs) == 3
    assert answers.calls[-1] == ("mark-started", "job-0", "job-1", "job-2")


def test_a_job_that_cannot_be_started_does_not_stop_the_others(
    monkeypatch: pytest.MonkeyPatch, supervisor: Supervisor
) -> None:
    """The other jobs get their runs and are recorded; the task fails with the name of the job."""
    supervisor.refused = "job-1"
    answers = commands(monkeypatch, next_jobs=WAITING, mark_started={})
    with pytest.raises(AirflowException, match="1 jobs could not be started, the first is job-1"):
        start()
    assert answers.calls[-1] == ("mark-started", "job-0", "job-2")


def answer_of_airflow(status: int, detail: Any) -> dict[str, Any]:
    """Return the part of an answer of the API server that the supervisor forwards."""
    return {"status_code": status, "message": "Server returned error", "detail": {"detail": detail}}


# As Airflow words it: the sentence, then the schema.
VALUES = {
    "reason": "value_error",
    "message": "Invalid input for param num_clip: 0 is less than the minimum of 1\n\nFailed validating 'minimum' in "
    "schema:\n    {'type': ['null', 'integer'],\n     'minimum': 1}\n\nOn instance:\n    0",
}


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_job_that_airflow_refuses_for_good_has_failed(
    monkeypatch: pytest.MonkeyPatch, supervisor: Supervisor, status: int
) -> None:
    """A job whose request Airflow refuses fails with Airflow's reason, and the task continues with the others."""
    supervisor.refused, supervisor.answer = "job-1", answer_of_airflow(status, VALUES)
    answers = commands(monkeypatch, next_jobs=WAITING, mark_started={}, refuse_job={})
    assert start() == {"started": 2, "refused": 1, "waiting": 2}
    command, job_id, _, reason = answers.calls[-1]
    assert (command, job_id) == ("refuse-job", "job-1")
    assert reason.endswith("num_clip: 0 is less than the minimum of 1. Correct the request and submit it again.")


def test_a_long_reason_is_cut(monkeypatch: pytest.MonkeyPatch, supervisor: Supervisor) -> None:
    """The reason in a command line is cut if Airflow repeats a long value."""
    long = VALUES | {"message": f"Invalid input for param prompt: '{'x' * 200_000}' is too long"}
    supervisor.refused, supervisor.answer = "job-1", answer_of_airflow(400, long)
    answers = commands(monkeypatch, next_jobs=WAITING, mark_started={}, refuse_job={})
    start()
    assert len(answers.calls[-1][-1]) < 1000
    assert "param prompt" in answers.calls[-1][-1]


@pytest.mark.parametrize(
    "answer",
    [
        answer_of_airflow(400, {"reason": "import_errors", "message": "Dag has import errors"}),
        answer_of_airflow(403, "Forbidden"),
        answer_of_airflow(404, {"reason": "not_found", "message": "Dag not found"}),
        answer_of_airflow(429, "Too many requests"),
        {"status_code": 500, "message": "Internal server error", "detail": None},
    ],
)
def test_no_job_is_blamed_for_a_fault_of_the_installation(
    monkeypatch: pytest.MonkeyPatch, supervisor: Supervisor, answer: dict[str, Any]
) -> None:
    """A DAG with an import error or a missing permission fails no job: jobs continue to wait."""
    supervisor.refused, supervisor.answer = "job-1", answer
    answers = commands(monkeypatch, next_jobs=WAITING, mark_started={})
    with pytest.raises(AirflowException, match="1 jobs could not be started"):
        start()
    assert answers.calls[-1] == ("mark-started", "job-0", "job-2")


def test_places_of_jobs_with_lost_runs_are_given_to_others(
    monkeypatch: pytest.MonkeyPatch, supervisor: Supervisor
) -> None:
    """Silent runs that Airflow does not know are closed, and the queue is read again."""
    supervisor.runs["goes-on"] = TriggerDagRun(dag_id="speech_to_video", run_id="goes-on")
    looks = [{"jobs": [], "waiting": 3, "silent_runs": ["gone", "goes-on"]}, WAITING]
    answers = commands(monkeypatch, mark_started={}, close_lost={})
    monkeypatch.setattr(
        command_operators, "run_command", lambda *call: looks.pop(0) if call[1] == "next-jobs" else answers(*call)
    )
    assert start()["started"] == 3
    assert answers.calls[0] == ("close-lost", "--", "gone")


def test_a_lost_run_named_like_an_option_is_closed(monkeypatch: pytest.MonkeyPatch, supervisor: Supervisor) -> None:
    """Airflow lets users choose run ids that begin with a dash; the command takes them as run ids."""
    looks: list[Any] = [{"jobs": [], "waiting": 0, "silent_runs": runs} for runs in (["--help", "-x"], [])]
    closed = []

    def run_command(_task: Any, *call: str) -> Any:
        if call[0] == "next-jobs":
            return looks.pop(0)
        command = get_command(ingestion.app).commands[call[0]]  # type: ignore[attr-defined]
        closed.append(command.make_context(call[0], list(call[1:])).params)
        return {}

    monkeypatch.setattr(command_operators, "run_command", run_command)
    start()
    assert closed == [{"run_ids": ["--help", "-x"]}]


def test_nothing_is_recorded_when_no_job_waits(monkeypatch: pytest.MonkeyPatch, supervisor: Supervisor) -> None:
    """Without waiting jobs, the task makes one query and records nothing."""
    answers = commands(monkeypatch, next_jobs={"jobs": [], "waiting": 4, "silent_runs": []})
    assert start() == {"started": 0, "refused": 0, "waiting": 4}
    assert answers.calls == [("next-jobs",)]


@pytest.mark.parametrize("ended", [True, False])
def test_a_batch_starts_more_jobs_at_each_poll(
    monkeypatch: pytest.MonkeyPatch, supervisor: Supervisor, ended: bool
) -> None:
    """Each poll starts jobs in free places, and the wait ends with the last job of the batch."""
    state = {"jobs": {}, "ended": ended}
    answers = commands(monkeypatch, next_jobs=WAITING, mark_started={}, batch_state=state)
    assert BatchSensor(task_id="wait", batch_id="b1").poke({}) is ended
    assert len(supervisor.runs) == (0 if ended else 3)
    assert answers.calls[0] == ("batch-state", "b1")


def test_a_batch_waits_on_when_a_job_cannot_be_started(monkeypatch: pytest.MonkeyPatch, supervisor: Supervisor) -> None:
    """The wait of a batch outlasts temporary faults: it polls again and ends with its last job."""
    supervisor.refused = "job-1"
    answers = commands(monkeypatch, next_jobs=WAITING, mark_started={}, batch_state={"jobs": {}, "ended": False})

    def look_again(*_: Any) -> None:
        answers.script["batch-state"] = {"jobs": {}, "ended": True}

    wait = BatchSensor(task_id="wait", batch_id="b1", mode="poke", poke_interval=0)
    monkeypatch.setattr("airflow.sdk.bases.sensor.time.sleep", look_again)
    wait.execute({})
    assert sorted(supervisor.runs) == ["job-0", "job-2"]
    assert answers.calls.count(("batch-state", "b1")) == 2


@pytest.mark.parametrize(
    ("exit_code", "expected"), [(65, AirflowFailException), (75, AirflowException), (78, AirflowFailException)]
)
def test_the_exit_code_of_a_command_decides_about_a_retry(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, exit_code: int, expected: type[Exception]
) -> None:
    """The error of the task is the message of the command, and its exit code decides about a retry."""
    script = tmp_path / "interpreter"
    record = json.dumps({"exit_code": exit_code, "message": "Row 3 is wrong."})
    script.write_text(f"#!/bin/sh\necho '{record}' > \"$STEP_ERROR_FILE\"\nexit {exit_code}\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    with pytest.raises(AirflowException, match=r"Row 3 is wrong\.") as failed:
        CommandOperator(task_id="start", arguments=["start-batch", "s3://b/m.csv"]).execute({})
    assert type(failed.value) is expected
