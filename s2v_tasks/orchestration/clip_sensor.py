"""Let a clip wait for the previous clip of its chain: Airflow has no order between mapped tasks.

The wait holds no worker slot: it always defers to the triggerer and ignores `[operators] default_deferrable`. It does
not reschedule every few seconds, because a race in Airflow then fails the task. The exception is `dag.test()`, which
runs one task at a time and triggers inline. A trigger would block the clip for which it waits, so the wait is
rescheduled there.
"""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

from airflow.sdk import BaseSensorOperator, Context
from airflow.sdk.exceptions import AirflowFailException
from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance
from airflow.triggers.base import BaseTrigger, TaskSuccessEvent, TriggerEvent
from asgiref.sync import sync_to_async

from s2v_tasks.orchestration.approval import ask, settle, wanted_approval
from s2v_tasks.orchestration.step_commands import in_dag_test
from s2v_tasks.schemas.steps import CLIP_RENDER_TASK

# A trigger that fires within seconds of its deferral can fail its task (apache/airflow#66374): wait before the first
# poll.
DEFERRED_POLL_SECONDS = 10.0
# Poll interval while the previous clip is rendered; one wait of each chain uses it.
NEAR_POLL_SECONDS = 2.0
RESCHEDULED_POLL_SECONDS = 2.0
# On a busy machine Airflow can fail a wait. It computes nothing, so a retry costs nothing.
WAIT_RETRIES: dict[str, Any] = {"retries": 20, "retry_delay": timedelta(seconds=10)}

_SUCCEEDED = frozenset({"success"})
_UNDER_WAY = frozenset({"running", "deferred"})
_FAILED = frozenset({"failed", "upstream_failed", "skipped", "removed"})


def _state(dag_id: str, run_id: str, task_id: str, map_index: int) -> str | None:
    """Return the state of one mapped task of a run; None if it has none yet."""
    runs = RuntimeTaskInstance.get_task_states(dag_id=dag_id, map_index=map_index, task_ids=[task_id], run_ids=[run_id])
    states = list(runs.get(run_id, {}).values())
    return states[0] if states else None


class ClipSensor(BaseSensorOperator):  # type: ignore[misc]
    """Succeeds when the predecessor of `clip` is rendered or does not exist; fails if it failed finally."""

    template_fields = ("clip",)

    def __init__(self, *, clip: Any, **kwargs: Any) -> None:
        super().__init__(mode="reschedule", poke_interval=RESCHEDULED_POLL_SECONDS, **(WAIT_RETRIES | kwargs))
        self.clip = clip

    def execute(self, context: Context) -> None:
        """Return when the clip may start; until then defer, or in `dag.test()` reschedule."""
        if in_dag_test():
            super().execute(context)
        elif not self.poke(context):
            trigger = ClipTrigger(**self._predecessor(context), asks=self._asks(context))
            self.defer(trigger=trigger, method_name="resume")
        if self._asks(context):
            ask(self, context, self._clip_before)

    def poke(self, context: Context) -> bool:
        """Return True if the predecessor is rendered; AirflowFailException if it failed finally."""
        if self.clip["predecessor"] is None:
            return True
        return self._is_turn(_state(**self._predecessor(context)))

    def resume(self, context: Context, event: dict[str, Any]) -> None:
        """Continue after the end of the predecessor: ask for its approval, or fail if it failed."""
        self._is_turn(event["state"])
        if self._asks(context):
            ask(self, context, self._clip_before)

    def decided(self, context: Context, event: dict[str, Any]) -> None:
        """Return if the previous clip is approved; otherwise fail."""
        settle(self, context, self._clip_before, event)

    @property
    def _clip_before(self) -> int:
        """Return the index of the previous clip; with approvals each task renders one clip."""
        return int(self.clip["clip_index"]) - 1

    def _asks(self, context: Context) -> bool:
        """Return True if a person must approve the previous clip."""
        return self.clip["predecessor"] is not None and wanted_approval(context) == "each_clip"

    def _is_turn(self, state: str | None) -> bool:
        if state in _FAILED:
            raise AirflowFailException(
                f"{self.clip['label']} cannot start: clip {self.clip['clip_index']}, which it continues, "
                f"is {state}. Clear the task of that clip and this task to continue; finished clips are reused."
            )
        return state in _SUCCEEDED

    def _predecessor(self, context: Context) -> dict[str, Any]:
        """Return the mapped task of the predecessor. Its position in the plan is its map index."""
        return {
            "dag_id": self.dag_id,
            "run_id": context["run_id"],
            "task_id": CLIP_RENDER_TASK,
            "map_index": self.clip["predecessor"],
        }


class ClipTrigger(BaseTrigger):  # type: ignore[misc]
    """Ends the wait when one mapped task of a run has succeeded; fires with its state if it failed finally.

    `asks`: the sensor also resumes after a success, to ask for the approval.
    """

    def __init__(self, dag_id: str, run_id: str, task_id: str, map_index: int, asks: bool = False) -> None:
        super().__init__()
        self.asks = asks
        self.target: dict[str, Any] = {"dag_id": dag_id, "run_id": run_id, "task_id": task_id, "map_index": map_index}

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return import path and arguments, from which a triggerer creates the trigger."""
        return f"{type(self).__module__}.{type(self).__qualname__}", self.target | {"asks": self.asks}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Poll until the task has ended."""
        state = None
        while state not in _SUCCEEDED | _FAILED:
            await asyncio.sleep(NEAR_POLL_SECONDS if state in _UNDER_WAY else DEFERRED_POLL_SECONDS)
            state = await sync_to_async(_state)(**self.target)
        # A success ends the task here, without starting a worker, unless an approval is needed.
        is_done = state in _SUCCEEDED and not self.asks
        yield TaskSuccessEvent() if is_done else TriggerEvent({"state": state})
