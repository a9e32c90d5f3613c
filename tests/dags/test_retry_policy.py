"""Check the number of retries of a task for each kind of failure."""

from types import SimpleNamespace
from typing import Any

import pytest

from s2v_tasks.orchestration.retry_policy import OWN_FAILURES, is_final, retries, working_time
from s2v_tasks.orchestration.step_operators import step_task
from s2v_tasks.schemas.steps import CLOSE_JOB, PUBLISH, RENDER_CLIP, STAGE_INPUTS
from s2v_tasks.settings import load_settings


class Store(dict[str, Any]):
    """The state that Airflow keeps for a task between tries."""

    def set(self, key: str, value: Any) -> None:
        self[key] = value


def delays(task: Any) -> list[float]:
    """Return the shortest delays that Airflow makes between the tries of a task."""
    longest = task.max_retry_delay.total_seconds()
    base, factor = task.retry_delay.total_seconds(), task.retry_exponential_backoff
    return [min(longest, base * factor**number) for number in range(task.retries)]


@pytest.mark.parametrize(("seconds", "fewest"), [(0, 2), (40, 2), (41, 3), (900, 6), (7200, 27)])
def test_tries_last_as_long_as_an_outage_may(monkeypatch: pytest.MonkeyPatch, seconds: int, fewest: int) -> None:
    """The delays between the tries of a step add up to the setting; none is longer than five minutes."""
    monkeypatch.setenv("S2V_RETRY_SECONDS", str(seconds))
    load_settings.cache_clear()
    for step in (STAGE_INPUTS, RENDER_CLIP, PUBLISH, CLOSE_JOB):
        task: Any = step_task(step)
        assert task.retries == fewest
        assert sum(delays(task)) >= seconds
        assert delays(task)[:3] == [10, 30, 90][:fewest]
        assert max(delays(task)) <= 300


def test_more_tries_may_be_asked_for() -> None:
    """Heavy steps have more tries, because a pod may be preempted more often than S3 is unavailable."""
    assert retries(10)["retries"] == 10


def test_failures_of_the_step_itself_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The third failure of the step is final; clearing the task starts the count again."""
    context = {"task_state_store": Store(), "ti": SimpleNamespace(max_tries=6)}
    assert OWN_FAILURES == 2
    assert [is_final("step", context) for _ in range(4)] == [False, False, True, True]
    context["ti"] = SimpleNamespace(max_tries=13)
    assert [is_final("step", context) for _ in range(3)] == [False, False, True]


def test_a_task_has_time_for_each_take_of_each_clip() -> None:
    """The time limit grows with the number of clips times the number of takes; without retakes with that of clips."""
    one = working_time(RENDER_CLIP)
    assert working_time(RENDER_CLIP, {"count": 2}) == 2 * one
    assert working_time(RENDER_CLIP, {"count": 2, "takes": 3}) == 6 * one
