"""The trigger that waits for a pod."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

from airflow.providers.cncf.kubernetes.triggers.pod import KubernetesPodTrigger
from airflow.triggers.base import TriggerEvent

from s2v_tasks.orchestration.chain import DEFERRED_POLL_SECONDS


class StepPodTrigger(KubernetesPodTrigger):  # type: ignore[misc]
    """Waits like its base, but never fires within seconds of its deferral.

    A pod without an image fails at once, and a trigger that fires so soon can fail its task behind the back of the
    worker that resumes it (apache/airflow#66374): the try is spent, and nobody has counted whose fault it was.
    """

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Import path and arguments, from which a triggerer makes the trigger again."""
        return f"{type(self).__module__}.{type(self).__qualname__}", super().serialize()[1]

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """The events of the base, none too early."""
        earliest = time.monotonic() + DEFERRED_POLL_SECONDS
        async for event in super().run():
            await asyncio.sleep(max(0.0, earliest - time.monotonic()))
            yield event
