"""Waiting for a pod in the triggerer."""

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest
from airflow.providers.cncf.kubernetes.triggers.pod import KubernetesPodTrigger
from airflow.sdk.exceptions import TaskDeferred
from airflow.triggers.base import TriggerEvent

from s2v_tasks.orchestration import pod_trigger
from s2v_tasks.orchestration.execution import step_task
from s2v_tasks.orchestration.pod_trigger import StepPodTrigger
from s2v_tasks.settings import load_settings


def waiting_for_a_pod() -> KubernetesPodTrigger:
    return KubernetesPodTrigger(
        pod_name="render-clip-x",
        pod_namespace="s2v",
        trigger_start_time=datetime(2026, 1, 1, tzinfo=UTC),
        base_container_name="base",
        trigger_kwargs={"_execution_deadline": 1},
    )


def test_a_step_waits_by_our_trigger_with_all_that_its_base_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    """A triggerer can make it again from what Airflow keeps."""
    monkeypatch.setenv("S2V_EXECUTION", "kubernetes")
    load_settings.cache_clear()
    with pytest.raises(TaskDeferred) as deferral:
        step_task("encode-conditions").defer(trigger=waiting_for_a_pod(), method_name="trigger_reentry")
    path, arguments = deferral.value.trigger.serialize()
    assert path == "s2v_tasks.orchestration.pod_trigger.StepPodTrigger"
    assert StepPodTrigger(**arguments).serialize()[1] == waiting_for_a_pod().serialize()[1]


def test_a_pod_that_fails_at_once_is_told_of_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """An event within seconds of the deferral would fail the task behind its back."""

    async def at_once(_: KubernetesPodTrigger) -> AsyncIterator[TriggerEvent]:
        yield TriggerEvent({"status": "error"})

    monkeypatch.setattr(KubernetesPodTrigger, "run", at_once)
    monkeypatch.setattr(pod_trigger, "DEFERRED_POLL_SECONDS", 0.2)

    async def first_event() -> TriggerEvent:
        return await anext(StepPodTrigger(**waiting_for_a_pod().serialize()[1]).run())

    started = time.monotonic()
    assert asyncio.run(first_event()).payload == {"status": "error"}
    assert time.monotonic() - started >= 0.2
