"""Where a step runs: the one place that decides it, from `S2V_EXECUTION`."""

from typing import Any

from airflow.sdk import BaseOperator

from s2v_tasks.orchestration.operators import CloseJobOperator, StepOperator
from s2v_tasks.orchestration.retries import retries
from s2v_tasks.settings import load_settings

# One slot for each pod. Its definition (config/airflow/pools.json) counts deferred tasks: those whose pods run.
GPU_POOL = "gpu"


def step_task(step: str, **kwargs: Any) -> BaseOperator:
    """The task that runs `s2v <step>`: in an Airflow worker or, where that is configured and it is heavy, in a pod.

    The decision falls while the DAG is parsed, because it chooses the operator: a DAG that cannot run shows as an
    import error with the reason, before anyone can trigger it.
    """
    kwargs.setdefault("task_id", step.replace("-", "_"))
    settings = load_settings()
    if settings.execution == "kubernetes":
        # Imported here: the operator costs each parse of the DAG a second, where it is not used too.
        from s2v_tasks.orchestration import pods

        if step in pods.POD_STEPS:
            return pods.StepPodOperator(step=step, pool=GPU_POOL, **retries(pods.RETRIES), **kwargs)
        if step == "close-job":
            return pods.CloseJobOfPodsOperator(step=step, **retries(), **kwargs)
    elif step in {"encode-conditions", "render-clip"}:
        # All runs share the GPUs of the workers. Not the pool: a machine of one's own need not have made it.
        kwargs["max_active_tis_per_dag"] = settings.local_renders
    operator = CloseJobOperator if step == "close-job" else StepOperator
    return operator(step=step, **retries(), **kwargs)
