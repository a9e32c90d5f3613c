"""Check the order in which tasks of several jobs get a slot."""

import importlib.metadata
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from s2v_tasks.orchestration import policy
from s2v_tasks.schemas.steps import JOB_DAG

DAGS = Path(__file__).parents[2] / "dags"
NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)


def weight(
    conf: dict[str, Any] | None, own: int = 7, dag_id: str = "speech_to_video", times: int = 2, at: datetime = NOON
) -> int:
    task = SimpleNamespace(dag_id=dag_id, priority_weight=own)
    for _ in range(times):  # Airflow asks again at each try
        policy.task_instance_mutation_hook(task, SimpleNamespace(conf=conf, run_after=at))
    return int(task.priority_weight)


def test_a_higher_priority_goes_before_any_task_of_a_lower_one() -> None:
    """The priority of the request counts before the age of the run and the position of the task."""
    late, early = NOON, NOON - timedelta(days=100)
    assert weight({"priority": "high"}, 1, at=late) > weight({"priority": "normal"}, 19, at=early)
    assert weight({"priority": "normal"}, 1, at=late) > weight({"priority": "low"}, 19, at=early)


def test_the_older_run_goes_first_then_the_later_task() -> None:
    """With equal priority, the older run goes first; within a run, the later task goes first."""
    assert weight({}, 1, at=NOON) > weight({}, 19, at=NOON + timedelta(seconds=10))
    assert weight({}, 2) > weight({}, 1)


@pytest.mark.parametrize("priority", ["low", "normal", "high"])
def test_a_retry_does_not_raise_the_priority(priority: str) -> None:
    """The weight is the same for each try of a task."""
    assert len({weight({"priority": priority}, times=times) for times in (1, 2, 3, 11)}) == 1


@pytest.mark.parametrize("at", [NOON, NOON + timedelta(days=40_000)])
def test_weights_fit_into_the_column_of_airflow(at: datetime) -> None:
    """Each weight is a positive 32-bit integer, also for a run in a hundred years."""
    assert all(0 < weight({"priority": name}, 19, at=at) < 2**31 for name in ("low", "normal", "high"))


@pytest.mark.parametrize("conf", [None, {}, {"priority": "urgent"}])
def test_a_run_without_a_valid_priority_is_normal(conf: dict[str, Any] | None) -> None:
    """A run without configuration, or with an unknown priority, has the normal priority."""
    assert weight(conf) == weight({"priority": "normal"})


@pytest.mark.parametrize("dag_id", [path.stem for path in DAGS.glob("*.py") if path.stem != JOB_DAG])
def test_tasks_that_start_and_report_jobs_go_before_all_jobs(dag_id: str) -> None:
    """Every DAG but that of the jobs has a higher weight than any task of a job."""
    assert 2**31 > weight(None, 1, dag_id) > weight({"priority": "high"}, 19, at=datetime(2026, 1, 1, tzinfo=UTC))


def test_other_dags_are_left_alone() -> None:
    """Tasks of other DAGs, and tasks without a run, keep their weight."""
    assert weight({"priority": "high"}, 3, "other") == 3
    task = SimpleNamespace(dag_id="speech_to_video", priority_weight=3)
    policy.task_instance_mutation_hook(task, None)
    assert task.priority_weight == 3


def test_airflow_finds_the_policy() -> None:
    """The entry point of the installed package names the policy, and Airflow registers its hook."""
    import pluggy
    from airflow import policies

    entry = importlib.metadata.EntryPoint("s2v", "s2v_tasks.orchestration.policy", "airflow.policy")
    manager = pluggy.PluginManager("airflow.policy")
    manager.add_hookspecs(policies)
    manager.register(entry.load())
    task = SimpleNamespace(dag_id="speech_to_video", priority_weight=1)
    run = SimpleNamespace(conf={"priority": "low"}, run_after=NOON)
    manager.hook.task_instance_mutation_hook(task_instance=task, dag_run=run)
    assert task.priority_weight == weight({"priority": "low"}, 1)
    assert len(manager.hook.task_instance_mutation_hook.get_hookimpls()) == 1


def test_airflow_registers_the_policy_in_every_process() -> None:
    """A new process that only imports Airflow has the policy as its hook."""
    code = "from airflow.settings import task_instance_mutation_hook as hook; print(hook.is_noop)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().splitlines()[-1] == "False"
