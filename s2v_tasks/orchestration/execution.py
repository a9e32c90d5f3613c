"""Where a step runs: the one place that decides it, from `S2V_EXECUTION`."""

from datetime import timedelta
from typing import Any

from s2v_tasks.errors import ConfigurationError
from s2v_tasks.orchestration.operators import CloseJobOperator, StepOperator
from s2v_tasks.settings import load_settings

# Bad input is never retried (see StepOperator); what is retried is short of memory, network or a machine.
RETRIES: dict[str, Any] = {
    "retries": 2,
    "retry_delay": timedelta(seconds=10),
    "retry_exponential_backoff": 3,
    "max_retry_delay": timedelta(minutes=5),
}
_EXECUTION_TIMEOUTS = {"encode-conditions": timedelta(hours=1), "render-clip": timedelta(hours=6)}
_DEFAULT_EXECUTION_TIMEOUT = timedelta(minutes=30)


def step_task(step: str, **kwargs: Any) -> StepOperator:
    """The task that runs `s2v <step>`; ConfigurationError when the configured execution is not there.

    The decision falls while the DAG is parsed, because it chooses the operator: a DAG that cannot run shows as an
    import error with this sentence, before anyone can trigger it.
    """
    execution = load_settings().execution
    if execution != "local":
        raise ConfigurationError(f"S2V_EXECUTION is {execution!r}, which this version cannot run: expected 'local'.")
    kwargs.setdefault("task_id", step.replace("-", "_"))
    kwargs.setdefault("execution_timeout", _EXECUTION_TIMEOUTS.get(step, _DEFAULT_EXECUTION_TIMEOUT))
    operator = CloseJobOperator if step == "close-job" else StepOperator
    return operator(step=step, **RETRIES, **kwargs)
