"""Retries and timeouts of tasks.

A failure outside the step (exit code 75: S3 or PostgreSQL unreachable, a full disk, a process that had to end) is
retried with exponential backoff for at least S2V_RETRY_SECONDS. A failure of the step itself is retried `OWN_FAILURES`
times: after an hour of GPU time it would probably fail again. Bad input is never retried (see StepOperator).
"""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from s2v_tasks.schemas.steps import Step
from s2v_tasks.settings import load_settings

EXIT_TRY_AGAIN = 75
OWN_FAILURES = 2  # of the step itself that are tried again
_FIRST_DELAY, _FACTOR, _LONGEST_DELAY = timedelta(seconds=10), 3, timedelta(minutes=5)
_FAILURES_KEY = "own_failures"


def retries(at_least: int = OWN_FAILURES) -> dict[str, Any]:
    """The arguments of a task that is tried again for as long as S2V_RETRY_SECONDS, and `at_least` so often."""
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


def is_one_too_many(context: Mapping[str, Any]) -> bool:
    """Count a failure of the step itself; whether it has failed too often.

    The count lives as long as the tries do: a person who clears the task starts it anew.
    """
    store, max_tries = context["task_state_store"], context["ti"].max_tries
    known = store.get(_FAILURES_KEY) or {}
    count = 1 + (known["count"] if known.get("max_tries") == max_tries else 0)
    store.set(_FAILURES_KEY, {"count": count, "max_tries": max_tries})
    return bool(count > OWN_FAILURES)


def working_time(step: Step, clip: Mapping[str, Any] | None = None) -> timedelta:
    """The limit for one task; one that renders several clips has the time of each.

    In it a step may wait for S3 and after that for PostgreSQL, with its work done: those waits are not taken from it.
    """
    waits = timedelta(seconds=2 * load_settings().retry_seconds)
    return (step.timeout + waits) * (1 if clip is None else clip["count"])
