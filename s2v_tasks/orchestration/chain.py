"""Order of the clips: a clip waits for the one before it in its chain. Airflow has no order between mapped tasks.

The wait holds no worker slot: with a triggerer it defers (`[operators] default_deferrable`), without one, as in
`dag.test()`, where a deferral would block the very clip that it waits for, it is rescheduled.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from airflow.sdk import BaseSensorOperator, Context
from airflow.sdk.configuration import conf
from airflow.sdk.exceptions import AirflowFailException
from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance
from airflow.triggers.base import BaseTrigger, TriggerEvent
from asgiref.sync import sync_to_async

# A trigger that fires within seconds of its deferral can fail its task (apache/airflow#66374): wait first, then look.
DEFERRED_POLL_SECONDS = 10.0
RESCHEDULED_POLL_SECONDS = 2.0

_SUCCEEDED = frozenset({"success"})
_FAILED = frozenset({"failed", "upstream_failed", "skipped", "removed"})


def _state(dag_id: str, run_id: str, task_id: str, map_index: int) -> str | None:
    """State of one mapped task of a run; None while it has none."""
    runs = RuntimeTaskInstance.get_task_states(dag_id=dag_id, map_index=map_index, task_ids=[task_id], run_ids=[run_id])
    states = list(runs.get(run_id, {}).values())
    return states[0] if states else None


class ClipTurnSensor(BaseSensorOperator):  # type: ignore[misc]
    """Succeeds when the predecessor of `clip` is rendered, at once when it has none; fails when it finally failed."""

    template_fields = ("clip",)

    def __init__(self, *, clip: Any, render_task_id: str, **kwargs: Any) -> None:
        super().__init__(mode="reschedule", poke_interval=RESCHEDULED_POLL_SECONDS, **kwargs)
        self.clip = clip
        self.render_task_id = render_task_id
        self.deferrable = conf.getboolean("operators", "default_deferrable", fallback=False)

    def execute(self, context: Context) -> None:
        """Return when it is the clip's turn; defers or reschedules until then."""
        if not self.deferrable:
            super().execute(context)
        elif not self.poke(context):
            self.defer(trigger=ClipTurnTrigger(**self._predecessor(context)), method_name="resume")

    def poke(self, context: Context) -> bool:
        """Whether the predecessor is rendered; AirflowFailException when it never will be."""
        if self.clip["predecessor"] is None:
            return True
        return self._is_turn(_state(**self._predecessor(context)))

    def resume(self, context: Context, event: dict[str, Any]) -> None:
        """Called when the trigger saw the predecessor end."""
        self._is_turn(event["state"])

    def _is_turn(self, state: str | None) -> bool:
        if state in _FAILED:
            raise AirflowFailException(
                f"{self.clip['label']} cannot start: clip {self.clip['clip_index']}, which it continues, "
                f"is {state}. Clear that clip's task and this one to go on; finished clips are reused."
            )
        return state in _SUCCEEDED

    def _predecessor(self, context: Context) -> dict[str, Any]:
        """Turns are mapped in the order of the plan: the position of a turn is its map index."""
        return {
            "dag_id": self.dag_id,
            "run_id": context["run_id"],
            "task_id": self.render_task_id,
            "map_index": self.clip["predecessor"],
        }


class ClipTurnTrigger(BaseTrigger):  # type: ignore[misc]
    """Fires when one mapped task of a run has ended, with its state."""

    def __init__(self, dag_id: str, run_id: str, task_id: str, map_index: int) -> None:
        super().__init__()
        self.target: dict[str, Any] = {"dag_id": dag_id, "run_id": run_id, "task_id": task_id, "map_index": map_index}

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Import path and arguments, from which a triggerer makes the trigger again."""
        return f"{type(self).__module__}.{type(self).__qualname__}", dict(self.target)

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Poll until the task has ended."""
        while True:
            await asyncio.sleep(DEFERRED_POLL_SECONDS)
            state = await sync_to_async(_state)(**self.target)
            if state in _SUCCEEDED | _FAILED:
                yield TriggerEvent({"state": state})
                return
