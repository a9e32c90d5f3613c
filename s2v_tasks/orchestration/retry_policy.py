"""Retries and timeouts of tasks.

| fault | meaning | retries |
|---|---|---|
| permanent | bad input, bad configuration, wrong usage | none |
| environment | S3 or PostgreSQL unreachable, a full disk, a process or pod that had to end | for S2V_RETRY_SECONDS |
| step | any other failure of the step: after an hour of GPU time it would probably fail again | `OWN_FAILURES` |

Retries have exponential backoff. `fault_of` judges by the exit code of a step, `pod_failures` by the state of a pod.
"""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Literal

from s2v_tasks.errors import ConfigurationError, PermanentError, TransientError
from s2v_tasks.schemas.steps import Step
from s2v_tasks.settings import load_settings

Fault = Literal["permanent", "environment", "step"]
OWN_FAILURES = 2  # of the step itself that are tried again
_WRONG_USAGE = 2  # exit code of a command with an unknown option
_FIRST_DELAY, _FACTOR, _LONGEST_DELAY = timedelta(seconds=10), 3, timedelta(minutes=5)
_FAILURES_KEY = "own_failures"


def fault_of(exit_code: int) -> Fault:
    """Return the fault of a step that ended with this exit code."""
    if exit_code in {_WRONG_USAGE, PermanentError.exit_code, ConfigurationError.exit_code}:
        return "permanent"
    return "environment" if exit_code == TransientError.exit_code else "step"


def is_final(fault: Fault, context: Mapping[str, Any]) -> bool:
    """Return True if the task is not retried. A fault of the step itself is counted.

    Clearing the task resets the count.
    """
    if fault != "step":
        return fault == "permanent"
    store, max_tries = context["task_state_store"], context["ti"].max_tries
    known = store.get(_FAILURES_KEY) or {}
    count = 1 + (known["count"] if known.get("max_tries") == max_tries else 0)
    store.set(_FAILURES_KEY, {"count": count, "max_tries": max_tries})
    return bool(count > OWN_FAILURES)


def retries(at_least: int = OWN_FAILURES) -> dict[str, Any]:
    """Return the retry arguments of a task: `at_least` this many retries, over at least S2V_RETRY_SECONDS."""
    number, delays = 0, timedelta()
    while number < at_least or delays.total_seconds() < load_settings().retry_seconds:
        delays += min(_FIRST_DELAY * _FACTOR**number, _LONGEST_DELAY)
        number += 1
    return {
        "retries": number,
        "retry_delay": _FIRST_DELAY,
        "retry_exponential_backoff": _FACTOR,
        "max_retry_delay": _LONGEST_DELAY,
    }


def working_time(step: Step, clip: Mapping[str, Any] | None = None) -> timedelta:
    """Return the timeout of one task: the time of its clips, with all their takes.

    A step may wait for S3 and then for PostgreSQL after its work is done. The time of these waits is added.
    """
    waits = timedelta(seconds=2 * load_settings().retry_seconds)
    return (step.timeout + waits) * (1 if clip is None else clip["count"] * clip.get("takes", 1))
