"""The order in which tasks of several jobs get a slot."""

import importlib.metadata
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from s2v_tasks.orchestration import policy


def weight(conf: dict[str, Any] | None, own: int = 7, dag_id: str = "speech_to_video", times: int = 2) -> int:
    task = SimpleNamespace(dag_id=dag_id, priority_weight=own)
    for _ in range(times):  # Airflow asks again at each try
        policy.task_instance_mutation_hook(task, SimpleNamespace(conf=conf))
    return int(task.priority_weight)


def test_a_higher_priority_goes_before_whatever_task_of_a_lower_one() -> None:
    """The priority of the request comes first, then the weight that the task has in its run."""
    assert weight({"priority": "high"}, 1) > weight({"priority": "normal"}, 9999) > weight({"priority": "low"}, 9999)
    assert weight({"priority": "high"}, 2) > weight({"priority": "high"}, 1)


@pytest.mark.parametrize("priority", ["low", "normal", "high"])
def test_a_retry_does_not_raise_the_priority(priority: str) -> None:
    """However often Airflow asks, the weight is the same: a job that fails often passes no other."""
    assert [weight({"priority": priority}, times=times) for times in (1, 2, 3, 11)] == [
        weight({"priority": priority})
    ] * 4
    assert weight({"priority": priority}, times=11) < weight({"priority": "high"}, 9999, times=1)


def test_a_priority_is_apart_from_the_next_by_more_than_any_weight_in_a_run() -> None:
    """Ranks are 10,000 apart; the weight of the task itself is kept."""
    assert [weight({"priority": name}, 9_999) for name in ("low", "normal", "high")] == [9_999, 19_999, 29_999]


@pytest.mark.parametrize("conf", [None, {}, {"priority": "urgent"}])
def test_a_run_that_says_nothing_is_normal(conf: dict[str, Any] | None) -> None:
    """A request that the first step will refuse does not stop the scheduler."""
    assert weight(conf) == weight({"priority": "normal"})


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
    manager.hook.task_instance_mutation_hook(task_instance=task, dag_run=SimpleNamespace(conf={"priority": "low"}))
    assert task.priority_weight == 1
    assert len(manager.hook.task_instance_mutation_hook.get_hookimpls()) == 1


def test_airflow_asks_the_policy_about_tasks_that_it_makes_with_their_run() -> None:
    """In a fresh process that only starts Airflow: its mark that nobody has a policy is gone."""
    code = "from airflow.settings import task_instance_mutation_hook as hook; print(hook.is_noop)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().splitlines()[-1] == "False"
