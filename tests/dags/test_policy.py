"""The order in which tasks of several jobs get a slot."""

import importlib.metadata
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from s2v_tasks.orchestration import policy

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)


def weight(
    conf: dict[str, Any] | None, own: int = 7, dag_id: str = "speech_to_video", times: int = 2, at: datetime = NOON
) -> int:
    task = SimpleNamespace(dag_id=dag_id, priority_weight=own)
    for _ in range(times):  # Airflow asks again at each try
        policy.task_instance_mutation_hook(task, SimpleNamespace(conf=conf, run_after=at))
    return int(task.priority_weight)


def test_a_higher_priority_goes_before_whatever_task_of_a_lower_one() -> None:
    """The priority of the request comes first, however old the other run is and however near its end."""
    late, early = NOON, NOON - timedelta(days=100)
    assert weight({"priority": "high"}, 1, at=late) > weight({"priority": "normal"}, 19, at=early)
    assert weight({"priority": "normal"}, 1, at=late) > weight({"priority": "low"}, 19, at=early)


def test_the_older_run_goes_first_then_the_later_task() -> None:
    """A run that has begun is brought to its end before a later run of the same priority gets a slot."""
    assert weight({}, 1, at=NOON) > weight({}, 19, at=NOON + timedelta(seconds=10))
    assert weight({}, 2) > weight({}, 1)


@pytest.mark.parametrize("priority", ["low", "normal", "high"])
def test_a_retry_does_not_raise_the_priority(priority: str) -> None:
    """However often Airflow asks, the weight is the same: a job that fails often passes no other."""
    assert len({weight({"priority": priority}, times=times) for times in (1, 2, 3, 11)}) == 1


@pytest.mark.parametrize("at", [NOON, NOON + timedelta(days=40_000)])
def test_weights_fit_into_the_column_of_airflow(at: datetime) -> None:
    """Each weight is a positive 32-bit integer, also in a hundred years."""
    assert all(0 < weight({"priority": name}, 19, at=at) < 2**31 for name in ("low", "normal", "high"))


@pytest.mark.parametrize("conf", [None, {}, {"priority": "urgent"}])
def test_a_run_that_says_nothing_is_normal(conf: dict[str, Any] | None) -> None:
    """A request that the first step will refuse does not stop the scheduler."""
    assert weight(conf) == weight({"priority": "normal"})


@pytest.mark.parametrize("dag_id", ["s2v_drop_folder", "s2v_batch", "s2v_notifications", "s2v_housekeeping"])
def test_tasks_that_start_and_report_jobs_go_before_all_jobs(dag_id: str) -> None:
    """Hundreds of waiting jobs do not keep a worker from the sweep of the drop folder or from messages."""
    assert 2**31 > weight(None, 1, dag_id) > weight({"priority": "high"}, 19, at=datetime(2026, 1, 1, tzinfo=UTC))


def test_other_dags_are_left_alone() -> None:
    """A cluster policy sees all tasks of the installation, and those that have no run yet."""
    assert weight({"priority": "high"}, 3, "other") == 3
    task = SimpleNamespace(dag_id="speech_to_video", priority_weight=3)
    policy.task_instance_mutation_hook(task, None)
    assert task.priority_weight == 3


def test_airflow_finds_the_policy() -> None:
    """The entry point of the installed package leads to it, and Airflow knows the hook."""
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


def test_airflow_asks_the_policy_about_tasks_that_it_makes_with_their_run() -> None:
    """In a fresh process that only starts Airflow: its mark that nobody has a policy is gone."""
    code = "from airflow.settings import task_instance_mutation_hook as hook; print(hook.is_noop)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().splitlines()[-1] == "False"
