"""Where a step runs: the one place that decides it, from `S2V_EXECUTION`."""

from typing import Any

from airflow.sdk import BaseOperator

from s2v_tasks.orchestration.operators import CloseJobOperator, StepOperator
from s2v_tasks.orchestration.retries import retries
from s2v_tasks.schemas.steps import CLOSE_JOB, Step
from s2v_tasks.settings import load_settings

# One slot for each pod. Its definition (config/airflow/pools.json) counts deferred tasks: those whose pods run.
GPU_POOL = "gpu"


def step_task(step: Step, **kwargs: Any) -> BaseOperator:
    """Return the task of a step: it runs in an Airflow worker, or in a pod if pods are configured and it is heavy.

    The decision falls while the DAG is parsed, because it chooses the operator: a DAG that cannot run shows as an
    import error with the reason, before anyone can trigger it.
    """
    kwargs.setdefault("task_id", step.name)
    settings = load_settings()
    if settings.execution == "kubernetes":
        # Imported here: the operator costs each parse of the DAG a second, where it is not used too.
        from s2v_tasks.orchestration import pods

        if step.is_heavy:
            return pods.StepPodOperator(step=step, pool=GPU_POOL, **retries(step.pod_retries), **kwargs)
        if step == CLOSE_JOB:
            return pods.CloseJobOfPodsOperator(step=step, **retries(step.retries), **kwargs)
    elif step.is_heavy:
        # All runs share the GPUs of the workers. Not the pool: a machine of one's own need not have made it.
        kwargs["max_active_tis_per_dag"] = settings.local_renders
    operator = CloseJobOperator if step == CLOSE_JOB else StepOperator
    return operator(step=step, **retries(step.retries), **kwargs)
