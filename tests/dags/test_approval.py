"""Check tasks that wait for a person: their question, the calls of Airflow, and the effects of an answer."""

import asyncio
import json
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException, TaskAwaitingInput, TaskDeferred
from airflow.sdk.execution_time import task_runner
from airflow.triggers.base import TaskSuccessEvent, TriggerEvent

from s2v_tasks.orchestration import approval, clip_sensor
from s2v_tasks.orchestration.clip_sensor import ClipSensor, ClipTrigger
from s2v_tasks.orchestration.step_operators import PublishOperator, step_task
from s2v_tasks.schemas.steps import PUBLISH

SECOND = {"clip_index": 1, "predecessor": 0, "label": "clip 2/2 frames 80..154"}
WAITING = {"status": "waiting", "subject": "Approve clip 1 of 2 of job my-job?", "last_clip": 0, "wait_seconds": 600.0}
APPROVED = {"status": "approved", "user": "edith"}
PUBLISHED = {"job_id": "my-job", "video_uri": "s3://b/v.mp4"}
ANSWER = {"responded_by_user": {"id": "1", "name": "edith"}, "params_input": {}}


class Airflow:
    """Records what a task asks of Airflow: commands, questions and new runs."""

    def __init__(self) -> None:
        self.results: list[dict[str, Any]] = []
        self.commands: list[tuple[str, ...]] = []
        self.questions: list[dict[str, Any]] = []
        self.started: list[dict[str, Any]] = []

    def run_command(self, task: Any, *arguments: str) -> dict[str, Any]:
        self.commands.append(arguments)
        return self.results.pop(0)


@pytest.fixture
def airflow(monkeypatch: pytest.MonkeyPatch) -> Airflow:
    """A worker whose commands give prepared results; the preceding clip is rendered."""
    airflow = Airflow()
    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", object(), raising=False)
    monkeypatch.setattr(approval, "run_command", airflow.run_command)
    monkeypatch.setattr(approval, "upsert_hitl_detail", lambda **question: airflow.questions.append(question))
    monkeypatch.setattr(approval, "start_run", airflow.started.append)
    monkeypatch.setattr(clip_sensor, "_state", lambda **_: "success")
    monkeypatch.setattr(ClipSensor, "dag_id", "speech_to_video")
    return airflow


def context(approval: str) -> dict[str, Any]:
    params = {"prompt": "Hello.", "size": None, "approval": approval, "job_id": "my-job"}
    return {"params": params, "run_id": "my-job", "ti": SimpleNamespace(id="an-id", max_tries=6)}


def sensor() -> ClipSensor:
    return ClipSensor(task_id="wait", clip=SECOND)


def publish(monkeypatch: pytest.MonkeyPatch) -> PublishOperator:
    operator = step_task(PUBLISH)
    assert isinstance(operator, PublishOperator)
    script = f"import json; print(json.dumps({PUBLISHED!r}))"
    monkeypatch.setattr(operator, "command", lambda _: [sys.executable, "-c", script])
    return operator


def test_a_job_without_approval_asks_no_question(airflow: Airflow, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without approvals, neither task runs a command for them or asks a question."""
    sensor().execute(context("none"))
    assert publish(monkeypatch).execute(context("none")) == PUBLISHED
    assert (airflow.commands, airflow.questions) == ([], [])


def test_only_each_clip_stops_between_clips(airflow: Airflow) -> None:
    """Only `each_clip` asks between clips; the first clip of a chain has no clip before it to approve."""
    sensor().execute(context("result"))
    first = ClipSensor(task_id="wait", clip=SECOND | {"clip_index": 0, "predecessor": None})
    first.execute(context("each_clip"))
    assert airflow.commands == []


def test_a_task_is_deferred_with_its_question(airflow: Airflow) -> None:
    """Airflow gets the subject, the options and the form of a rejection, and the task is deferred until the answer."""
    airflow.results = [dict(WAITING)]
    with pytest.raises(TaskAwaitingInput) as parked:
        sensor().execute(context("each_clip"))
    assert (parked.value.method_name, parked.value.timeout.total_seconds()) == ("decided", 600)
    assert airflow.commands == [("ask-approval", "--job-id", "my-job", "--run-id", "my-job", "--clip-index", "0")]
    (question,) = airflow.questions
    assert (question["ti_id"], question["options"]) == ("an-id", ["Approve", "Reject"])
    assert question["subject"] == WAITING["subject"]
    assert list(question["params"]) == ["note", "from_clip", "prompt", "base_seed", "sample_steps"]
    schemas = {name: param["schema"] for name, param in question["params"].items()}
    assert (schemas["sample_steps"]["maximum"], schemas["from_clip"]["maximum"]) == (100, 0)
    json.dumps(question["params"])


def test_the_next_clip_starts_after_the_approval(airflow: Airflow) -> None:
    """The answer is recorded with the name of the person, and the sensor succeeds."""
    airflow.results = [dict(APPROVED)]
    sensor().decided(context("each_clip"), ANSWER | {"chosen_options": ["Approve"]})
    assert airflow.commands[0][0] == "record-approval"
    assert airflow.commands[0][-4:] == ("--status", "approved", "--user", "edith")


def test_an_approved_video_is_not_asked_about_again(airflow: Airflow, monkeypatch: pytest.MonkeyPatch) -> None:
    """A retry of `publish` after its approval publishes without another question."""
    airflow.results = [dict(APPROVED)]
    assert publish(monkeypatch).execute(context("result")) == PUBLISHED
    assert airflow.questions == []


def test_the_video_is_published_after_its_approval(airflow: Airflow, monkeypatch: pytest.MonkeyPatch) -> None:
    """`publish` asks about the video for both kinds of approval, and runs its step when it is resumed."""
    for kind in ("result", "each_clip"):
        airflow.results = [dict(WAITING)]
        with pytest.raises(TaskAwaitingInput):
            publish(monkeypatch).execute(context(kind))
    airflow.results = [dict(APPROVED)]
    operator = publish(monkeypatch)
    assert operator.decided(context("result"), ANSWER | {"chosen_options": ["Approve"]}) == PUBLISHED
    assert operator.job_id == "my-job"
    assert "--clip-index" not in airflow.commands[-1]


def test_a_rejection_starts_the_rerun_and_fails_the_task_for_good(airflow: Airflow) -> None:
    """The rerun has the request of this run with the changes; the task fails without a retry, with the job's reason."""
    changes = {"base_seed": 5, "parent_job_id": "my-job", "from_clip": 0}
    rejected = {"status": "rejected", "reason": "Clip 1 was rejected by edith."}
    airflow.results = [rejected | {"next_job": {"job_id": "my-job-r1", "changes": changes}}]
    given = {"params_input": {"note": "No.", "base_seed": 5, "prompt": None}, "chosen_options": ["Reject"]}
    with pytest.raises(AirflowFailException, match="rejected by edith"):
        sensor().decided(context("each_clip"), ANSWER | given)
    assert airflow.commands[0][-2:] == ("--rejection", '{"note": "No.", "base_seed": 5}')
    request = {"prompt": "Hello.", "approval": "each_clip"} | changes
    assert airflow.started == [{"job_id": "my-job-r1", "run_id": "my-job-r1", "request": request}]


def test_a_try_that_was_killed_after_the_rejection_starts_the_rerun(airflow: Airflow) -> None:
    """The decision is stored, so that the next try of a killed task starts the rerun."""
    airflow.results = [{"status": "rejected", "reason": "Rejected.", "next_job": {"job_id": "r-1", "changes": {}}}]
    with pytest.raises(AirflowFailException, match="Rejected"):
        sensor().execute(context("each_clip"))
    assert [run["run_id"] for run in airflow.started] == ["r-1"]


def test_a_question_that_nobody_answers_fails_the_task(airflow: Airflow, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the time limit, the scheduler resumes the task, which fails with the message of the step."""
    airflow.results = [{"status": "expired", "reason": "Nobody approved or rejected the video within 168 h."}]
    with pytest.raises(AirflowFailException, match="Nobody approved"):
        publish(monkeypatch).decided(context("result"), {"error": "timeout", "error_type": "timeout"})
    assert airflow.commands[0][-2:] == ("--status", "expired")


def test_dag_test_does_not_hang(airflow: Airflow, monkeypatch: pytest.MonkeyPatch) -> None:
    """In `dag.test()`, where nobody can answer, the task fails at once with a message that says what to do."""
    from airflow.sdk.execution_time.supervisor import InProcessSupervisorComms

    comms = InProcessSupervisorComms(supervisor=SimpleNamespace())
    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", comms, raising=False)
    recorded: list[Any] = []
    monkeypatch.setattr(approval, "record_failure", lambda *arguments: recorded.append(arguments))
    with pytest.raises(AirflowFailException, match="nobody can answer"):
        publish(monkeypatch).execute(context("result"))
    with pytest.raises(AirflowFailException, match="nobody can answer"):
        approval.ask(sensor(), context("each_clip"), 0)
    assert all("leave approval out" in reason for _, _, _, reason, _ in recorded)
    assert [(step.command, clip) for step, _, clip, _, _ in recorded] == [("publish", None), ("render-clip", SECOND)]
    assert airflow.questions == []


def test_the_wait_is_resumed_to_ask(airflow: Airflow, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trigger resumes the task in a worker after the preceding clip only if a person is asked."""
    monkeypatch.setattr(clip_sensor, "DEFERRED_POLL_SECONDS", 0.01)
    monkeypatch.setattr(clip_sensor, "_state", lambda **_: "running")
    with pytest.raises(TaskDeferred) as deferred:
        sensor().execute(context("each_clip"))
    assert deferred.value.trigger.serialize()[1]["asks"] is True
    monkeypatch.setattr(clip_sensor, "_state", lambda **_: "success")

    async def first_event(trigger: ClipTrigger) -> Any:
        async for event in trigger.run():
            return event
        raise AssertionError("the trigger ended without an event")

    place = ("speech_to_video", "my-job", "clip.render", 0)
    assert isinstance(asyncio.run(first_event(ClipTrigger(*place))), TaskSuccessEvent)
    event = asyncio.run(first_event(ClipTrigger(*place, asks=True)))
    assert type(event) is TriggerEvent
    airflow.results = [dict(WAITING)]
    with pytest.raises(TaskAwaitingInput):
        sensor().resume(context("each_clip"), event.payload)
