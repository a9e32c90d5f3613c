"""Render the pods of tasks without a cluster."""

from datetime import datetime
from types import SimpleNamespace
from typing import Any

import pytest

from s2v_tasks.orchestration.pods import StepPodOperator
from s2v_tasks.orchestration.step_operators import step_task
from s2v_tasks.schemas.steps import RENDER_CLIP, Step
from s2v_tasks.settings import load_settings

CLIP = {"clip_index": 3, "count": 2, "predecessor": 2, "label": "clip 4/6"}


@pytest.fixture(autouse=True)
def pods_of_four_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run steps in pods, with four processes for a clip and a secret in the environment."""
    monkeypatch.setenv("S2V_EXECUTION", "kubernetes")
    monkeypatch.setenv("S2V_NPROC_PER_NODE", "4")
    monkeypatch.setenv("S2V_S3_SECRET_ACCESS_KEY", "hush")
    load_settings.cache_clear()


def context(task: StepPodOperator) -> dict[str, Any]:
    ti = SimpleNamespace(dag_id="speech_to_video", task_id=task.task_id, map_index=3, try_number=1)
    run = {"params": {"job_id": "my-job", "prompt": "A person."}, "run_id": "manual__1", "ti": ti, "dag": None}
    return run | {"dag_run": SimpleNamespace(start_date=datetime(2026, 1, 1))}


def rendered(step: Step, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the pod at the moment of its creation."""
    submitted = []

    def create(_: Any, pod_request_obj: Any, context: Any) -> Any:
        submitted.append(pod_request_obj)
        raise InterruptedError

    task = step_task(step, clip=CLIP if step == RENDER_CLIP else None)
    assert isinstance(task, StepPodOperator)
    monkeypatch.setattr(StepPodOperator, "get_or_create_pod", create)
    monkeypatch.setattr(StepPodOperator, "hook", SimpleNamespace(is_in_cluster=False))
    task.pre_execute(context(task))
    with pytest.raises(InterruptedError):
        task.execute(context(task))
    return submitted[0]
