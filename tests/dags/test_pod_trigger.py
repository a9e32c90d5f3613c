"""Check the wait for a pod in the triggerer."""

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.providers.cncf.kubernetes.triggers.pod import KubernetesPodTrigger
from airflow.providers.cncf.kubernetes.utils.pod_manager import AsyncPodManager
from airflow.sdk.exceptions import TaskDeferred
from airflow.triggers.base import TaskSuccessEvent, TriggerEvent

from s2v_tasks.orchestration import pods
from s2v_tasks.orchestration.pods import StepPodTrigger
from s2v_tasks.orchestration.step_operators import step_task
from s2v_tasks.schemas.steps import ENCODE_CONDITIONS
from s2v_tasks.settings import load_settings


def waiting_for_a_pod() -> KubernetesPodTrigger:
    return KubernetesPodTrigger(
        pod_name="render-clip-x",
        pod_namespace="s2v",
        trigger_start_time=datetime(2026, 1, 1, tzinfo=UTC),
        base_container_name="base",
        trigger_kwargs={"_execution_deadline": 1},
    )


def test_a_step_waits_by_its_own_trigger(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step defers to StepPodTrigger, which keeps all arguments of its base class when it is serialized."""
    monkeypatch.setenv("S2V_EXECUTION", "kubernetes")
    load_settings.cache_clear()
    with pytest.raises(TaskDeferred) as deferral:
        step_task(ENCODE_CONDITIONS).defer(trigger=waiting_for_a_pod(), method_name="trigger_reentry")
    path, arguments = deferral.value.trigger.serialize()
    assert path == "s2v_tasks.orchestration.pods.StepPodTrigger"
    assert StepPodTrigger(**arguments).serialize()[1] == waiting_for_a_pod().serialize()[1]


def test_dag_test_resumes_after_the_trigger_of_the_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    """`dag.test()` resumes the task after each trigger, so the trigger must not end it."""
    monkeypatch.setenv("S2V_EXECUTION", "kubernetes")
    monkeypatch.setattr(pods, "in_dag_test", lambda: True)
    load_settings.cache_clear()
    with pytest.raises(TaskDeferred) as deferral:
        step_task(ENCODE_CONDITIONS).defer(trigger=waiting_for_a_pod(), method_name="trigger_reentry")
    assert type(deferral.value.trigger) is KubernetesPodTrigger


class Cluster:
    """The asynchronous client of a cluster with one pod that has ended with success, and its log."""

    def __init__(self, *, refuses: bool) -> None:
        self.refuses = refuses
        self.deleted: list[str] = []
        self.lines = [f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%fZ} the last line"]
        self.seconds_of_log: list[int] = []

    async def get_pod(self, name: str, namespace: str) -> Any:
        metadata = SimpleNamespace(name=name, namespace=namespace, deletion_timestamp=None)
        return SimpleNamespace(metadata=metadata, status=SimpleNamespace(phase="Succeeded", container_statuses=None))

    async def read_logs(self, *, since_seconds: int, **_: str) -> list[str]:
        self.seconds_of_log.append(since_seconds)
        return self.lines

    async def delete_pod(self, name: str, _: str) -> None:
        if self.refuses:
            raise ConnectionError("the API does not answer")
        self.deleted.append(name)


@pytest.mark.parametrize("refuses", [False, True])
def test_a_pod_that_succeeded_needs_no_worker(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], refuses: bool
) -> None:
    """The trigger writes the rest of the log, deletes the pod and ends the task; if it cannot, a worker does it."""
    cluster = Cluster(refuses=refuses)

    async def started(trigger: KubernetesPodTrigger) -> Any:
        trigger.last_log_time = datetime.now(UTC) - timedelta(seconds=7)
        return "running"

    monkeypatch.setattr(KubernetesPodTrigger, "_wait_for_pod_start", started)
    monkeypatch.setattr(KubernetesPodTrigger, "hook", cluster)
    monkeypatch.setattr(KubernetesPodTrigger, "pod_manager", AsyncPodManager(async_hook=cluster))
    monkeypatch.setattr(pods, "DEFERRED_POLL_SECONDS", 0.0)

    async def events() -> list[TriggerEvent]:
        trigger = StepPodTrigger(**waiting_for_a_pod().serialize()[1] | {"trigger_kwargs": {}})
        return [event async for event in trigger.run()]

    (event,) = asyncio.run(events())
    log = capsys.readouterr().out
    assert "the last line" in log
    assert 9 <= cluster.seconds_of_log.pop() < 60  # from 7 s before, 1 s of waiting, rounded up
    assert cluster.deleted == ([] if refuses else ["render-clip-x"])
    assert isinstance(event, TaskSuccessEvent) is not refuses
    assert refuses is (isinstance(event.payload, dict) and event.payload["status"] == "success")
    assert ("A worker ends the task" in log) is refuses


def test_a_failure_soon_after_the_deferral_is_reported_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """The trigger sends no event in the first seconds after the deferral, because it would fail the task."""

    async def at_once(_: KubernetesPodTrigger) -> AsyncIterator[TriggerEvent]:
        yield TriggerEvent({"status": "error"})

    monkeypatch.setattr(KubernetesPodTrigger, "run", at_once)
    monkeypatch.setattr(pods, "DEFERRED_POLL_SECONDS", 0.2)

    async def first_event() -> TriggerEvent:
        return await anext(StepPodTrigger(**waiting_for_a_pod().serialize()[1]).run())

    started = time.monotonic()
    assert asyncio.run(first_event()).payload == {"status": "error"}
    assert time.monotonic() - started >= 0.2


@pytest.mark.parametrize(("minutes", "status"), [(-3, "timeout"), (-0.5, "failed"), (1, "failed"), (None, "failed")])
def test_the_pod_of_a_dead_node_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, minutes: float | None, status: str
) -> None:
    """A pod that is still Running after its grace period is not waited for; one that may still end is."""
    ends = None if minutes is None else datetime.now(UTC) + timedelta(minutes=minutes)
    phases = iter(["Running", "Running", "Failed"])

    async def read(_: KubernetesPodTrigger) -> Any:
        return SimpleNamespace(
            metadata=SimpleNamespace(deletion_timestamp=ends),
            status=SimpleNamespace(phase=next(phases), container_statuses=None),
        )

    async def started(trigger: KubernetesPodTrigger) -> Any:
        return trigger.define_pod_container_state(await trigger._get_pod())

    monkeypatch.setattr(KubernetesPodTrigger, "_get_pod", read)
    monkeypatch.setattr(KubernetesPodTrigger, "_wait_for_pod_start", started)
    monkeypatch.setattr(pods, "DEFERRED_POLL_SECONDS", 0.0)

    async def first_event() -> TriggerEvent:
        arguments = waiting_for_a_pod().serialize()[1] | {"trigger_kwargs": {}, "poll_interval": 0.01}
        return await anext(StepPodTrigger(**arguments).run())

    event = asyncio.run(first_event()).payload
    assert event["status"] == status, event
    assert status == "failed" or "its node does not answer any more" in event["message"]
