"""The trigger that waits for a pod."""

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.providers.cncf.kubernetes.triggers.pod import KubernetesPodTrigger
from airflow.providers.cncf.kubernetes.utils.pod_manager import PodLaunchTimeoutException
from airflow.triggers.base import TriggerEvent

from s2v_tasks.orchestration.chain import DEFERRED_POLL_SECONDS

# A kubelet ends a deleted pod within its grace, whose end is the pod's time of deletion.
_KUBELET_PATIENCE = timedelta(minutes=1)


class StepPodTrigger(KubernetesPodTrigger):  # type: ignore[misc]
    """Waits like its base, but never fires within seconds of its deferral, and not for the pod of a dead node.

    A pod without an image fails at once, and a trigger that fires so soon can fail its task behind the back of the
    worker that resumes it (apache/airflow#66374): the try is spent, and nobody has counted whose fault it was.

    When a node dies, Kubernetes deletes its pods, but only the node's kubelet could report that they have ended:
    they stay "Running" until somebody removes the node, and a clip would wait for that until its own time is over.
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

    async def _get_pod(self) -> Any:
        """The pod, as its base reads it; PodLaunchTimeoutException, after which nobody waits for it, if it is lost."""
        pod = await super()._get_pod()
        ends = pod.metadata.deletion_timestamp
        if ends is not None and datetime.now(UTC) > ends + _KUBELET_PATIENCE:
            raise PodLaunchTimeoutException(
                f"Pod {self.pod_name} should have ended at {ends:%H:%M:%S} UTC: its node does not answer any more."
            )
        return pod
