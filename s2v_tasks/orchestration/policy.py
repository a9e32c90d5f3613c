"""Order of the jobs that wait for a GPU: the `priority` of the request. Airflow loads this module by entry point.

Priorities are fixed in a DAG, and a request is known only with its run: a cluster policy is where both meet.
"""

from typing import Any

from airflow import settings
from airflow.policies import hookimpl

from s2v_tasks.schemas.job import DEFAULT_PRIORITY, PRIORITIES
from s2v_tasks.schemas.steps import JOB_DAG

# Larger than all weights of tasks, which let a nearly finished run go first.
_SPAN = 10_000
_RANKS: dict[str, int] = {name: rank for rank, name in enumerate(PRIORITIES)}
# Airflow 3.3 sets this flag only for a policy in airflow_local_settings.py. Without it, tasks that are created together
# with their run skip the policy, and `encode_conditions` would wait for its GPU without a priority.
settings.task_instance_mutation_hook.is_noop = False


@hookimpl  # type: ignore[untyped-decorator]
def task_instance_mutation_hook(task_instance: Any, dag_run: Any) -> None:
    """Raise the weight of a task by the priority of its run; repeated calls change nothing."""
    if task_instance.dag_id == JOB_DAG and dag_run is not None:
        rank = _RANKS.get(str((dag_run.conf or {}).get("priority")), _RANKS[DEFAULT_PRIORITY])
        task_instance.priority_weight = rank * _SPAN + task_instance.priority_weight % _SPAN
