"""Check the order of clips: when a clip starts, waits or fails."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException, AirflowRescheduleException, TaskDeferred
from airflow.sdk.execution_time import task_runner
from airflow.triggers.base import TaskSuccessEvent

from s2v_tasks.orchestration import clip_sensor
from s2v_tasks.orchestration.clip_sensor import ClipSensor, ClipTrigger

FIRST = {"clip_index": 0, "predecessor": None, "label": "clip 1/2 frames 0..80"}
SECOND = {"clip_index": 1, "predecessor": 0, "label": "clip 2/2 frames 80..154"}


class TaskInstance:
    """The part of a running task instance that a rescheduled sensor reads."""

    def get_first_reschedule_date(self, context: Any) -> None:
        return None


CONTEXT: dict[str, Any] = {"run_id": "manual__1", "params": {}, "ti": TaskInstance()}


def sensor(clip: dict[str, Any]) -> ClipSensor:
    return ClipSensor(task_id="wait", clip=clip)


@pytest.fixture(params=["worker", "dag.test()"])
def runner(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The process that runs the task: a worker with a supervisor in another process, or `dag.test()` with its own."""
    from airflow.sdk.execution_time.supervisor import InProcessSupervisorComms

    comms = object() if request.param == "worker" else InProcessSupervisorComms(supervisor=SimpleNamespace())
    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", comms, raising=False)
    return str(request.param)


@pytest.fixture
def states(monkeypatch: pytest.MonkeyPatch) -> dict[int, str | None]:
    """The state of each rendered clip by map index, as Airflow would return it."""
    known: dict[int, str | None] = {}

    def get_task_states(**query: Any) -> dict[str, Any]:
        assert (query["run_ids"], query["task_ids"]) == (["manual__1"], ["clip.render"])
        index = query["map_index"]
        return {"manual__1": {f"clip.render_{index}": known[index]}} if index in known else {}

    monkeypatch.setattr(clip_sensor.RuntimeTaskInstance, "get_task_states", staticmethod(get_task_states))
    monkeypatch.setattr(ClipSensor, "dag_id", "speech_to_video")
    return known


@pytest.mark.usefixtures("runner")
def test_the_first_clip_of_a_chain_starts_at_once() -> None:
    """A clip without predecessor starts without asking Airflow for a state."""
    sensor(FIRST).execute(CONTEXT)


@pytest.mark.usefixtures("runner")
def test_a_clip_starts_when_the_one_before_is_rendered(states: dict[int, str | None]) -> None:
    """The sensor succeeds at once if the predecessor is rendered."""
    states[0] = "success"
    sensor(SECOND).execute(CONTEXT)


@pytest.mark.parametrize("state", ["failed", "upstream_failed", "skipped", "removed"])
@pytest.mark.usefixtures("runner")
def test_a_clip_fails_at_once_when_the_one_before_finally_failed(states: dict[int, str | None], state: str) -> None:
    """The clip fails without a retry when its predecessor has failed for good; the message names both clips."""
    states[0] = state
    with pytest.raises(AirflowFailException, match=r"clip 2/2 .* clip 1"):
        sensor(SECOND).execute(CONTEXT)


@pytest.mark.parametrize("state", [None, "queued", "running", "up_for_retry", "deferred", "restarting"])
@pytest.mark.parametrize("default_deferrable", ["True", "False", None])
def test_a_clip_waits_without_a_slot(
    states: dict[int, str | None],
    state: str | None,
    runner: str,
    default_deferrable: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """While the predecessor may succeed, the sensor defers, whatever the default is; only in `dag.test()` it polls."""
    if default_deferrable is not None:
        monkeypatch.setenv("AIRFLOW__OPERATORS__DEFAULT_DEFERRABLE", default_deferrable)
    states[0] = state
    if runner == "dag.test()":
        with pytest.raises(AirflowRescheduleException):
            sensor(SECOND).execute(CONTEXT)
        return
    with pytest.raises(TaskDeferred) as deferred:
        sensor(SECOND).execute(CONTEXT)
    assert deferred.value.method_name == "resume"
    path, arguments = deferred.value.trigger.serialize()
    assert path == "s2v_tasks.orchestration.clip_sensor.ClipTrigger"
    assert ClipTrigger(**arguments).target["map_index"] == 0


def test_the_trigger_fires_when_the_clip_before_ends(
    states: dict[int, str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trigger polls until the predecessor has a final state, and the resumed sensor evaluates that state."""
    monkeypatch.setattr(clip_sensor, "DEFERRED_POLL_SECONDS", 0.01)
    monkeypatch.setattr(clip_sensor, "NEAR_POLL_SECONDS", 0.01)
    states[0] = "running"

    async def first_event() -> dict[str, Any]:
        trigger = ClipTrigger("speech_to_video", "manual__1", "clip.render", 0)
        asyncio.get_running_loop().call_later(0.05, states.update, {0: "failed"})
        async for event in trigger.run():
            return event.payload
        raise AssertionError("the trigger ended without an event")

    event = asyncio.run(first_event())
    assert event == {"state": "failed"}
    with pytest.raises(AirflowFailException):
        sensor(SECOND).resume(CONTEXT, event)


def test_the_trigger_does_not_fire_within_seconds_of_its_deferral(
    states: dict[int, str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An early event would fail the task (apache/airflow#66374); polls are more frequent once the clip is rendered."""
    upcoming, events = iter([None, "queued", "running", "deferred", "success"]), []

    async def sleep(seconds: float) -> None:
        events.append(seconds)
        states[0] = next(upcoming)

    async def consume() -> None:
        async for event in ClipTrigger("speech_to_video", "manual__1", "clip.render", 0).run():
            events.append(type(event))

    monkeypatch.setattr(clip_sensor.asyncio, "sleep", sleep)
    asyncio.run(consume())
    assert events == [10.0, 10.0, 10.0, 2.0, 2.0, TaskSuccessEvent]


def test_a_wait_that_airflow_fails_is_tried_again_more_often_than_work_is() -> None:
    """A sensor has 20 retries by default, because a retry of a wait costs nothing."""
    assert sensor(SECOND).retries == 20
    assert sensor(SECOND).retry_delay.total_seconds() == 10
    assert ClipSensor(task_id="wait", clip=SECOND, retries=3).retries == 3


def test_the_demo_polls_every_two_seconds() -> None:
    """In `dag.test()` the sensor polls every two seconds, because nothing else runs meanwhile."""
    assert sensor(SECOND).poke_interval == 2
