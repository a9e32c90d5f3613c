"""Order of the tasks that wait for a worker or a GPU. Airflow loads this module by entry point.

Weights are fixed in a DAG, but the request is known only with the run, so a cluster policy sets the weights.
"""

from typing import Any

from airflow import settings
from airflow.policies import hookimpl

from s2v_tasks.schemas.job import JOB_WEIGHTS_END, task_weight
from s2v_tasks.schemas.steps import BATCH_DAG, DROP_FOLDER_DAG, HOUSEKEEPING_DAG, JOB_DAG, NOTIFICATIONS_DAG

# Few short tasks that start, report and clean up jobs: they go before all tasks of jobs.
_FIRST_DAGS = frozenset({BATCH_DAG, DROP_FOLDER_DAG, HOUSEKEEPING_DAG, NOTIFICATIONS_DAG})
# Airflow 3.3 sets this flag only for a policy in airflow_local_settings.py. Without it, tasks that are created together
# with their run skip the policy, and `encode_conditions` would wait for its GPU without a priority.
settings.task_instance_mutation_hook.is_noop = False


@hookimpl  # type: ignore[untyped-decorator]
def task_instance_mutation_hook(task_instance: Any, dag_run: Any) -> None:
    """Set the weight of a task by the priority and the age of its run; repeated calls change nothing."""
    if task_instance.dag_id in _FIRST_DAGS:
        task_instance.priority_weight = JOB_WEIGHTS_END
    elif task_instance.dag_id == JOB_DAG and dag_run is not None:
        priority = (dag_run.conf or {}).get("priority")
        own = task_instance.priority_weight
        task_instance.priority_weight = task_weight(priority, dag_run.run_after.timestamp(), own)
