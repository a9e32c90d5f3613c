"""What a pod died of, in one sentence, and whether another try makes sense. Knows pods, not Airflow.

| What happened | What follows |
|---|---|
| the step said why, with exit code 2, 65 or 78 | no retry: bad input or bad configuration |
| out of memory (OOMKilled) | no retry: the same clip needs the same memory again, and an hour of GPU to find that out |
| no node took the pod within the time for it | no retry: that time is the patience of the installation |
| the image's name is no image name | no retry |
| the step said why, with exit code 75 | retry, as the cluster's fault: preempted with its state saved, or S3 was away |
| evicted, preempted, node lost, killed, pod deleted or gone | retry, as the cluster's fault |
| the API does not answer | retry, as the cluster's fault |
| pod refused, image not pulled, start or run too slow, any other exit | retry, as the step's own fault |
"""

import json
import signal
from dataclasses import dataclass
from typing import Any, Literal

from s2v_tasks.orchestration.process import PERMANENT_EXIT_CODES, last_words

Fault = Literal["permanent", "step", "cluster"]

_EXIT_TRY_AGAIN = 75
_KILLED = {128 + number: number.name for number in (signal.SIGKILL, signal.SIGTERM)}
_SERVER_ERROR = 500
# Reasons that the kubelet or the scheduler give for ending a pod that did nothing wrong.
_TAKEN_AWAY = frozenset({"Evicted", "Preempting", "Preempted", "NodeLost", "NodeShutdown", "Shutdown", "Terminated"})
_NO_IMAGE_NAME = frozenset({"InvalidImageName", "ErrImageNeverPull"})


@dataclass(frozen=True)
class PodFailure:
    """Why a pod failed. `fault` decides about retries; what was `said_by_step` is on record already."""

    message: str
    fault: Fault
    said_by_step: bool = False


def judge(pod: Any | None, container: str, seen: str) -> PodFailure:
    """Judge a V1Pod in its last known state; None: it is gone. `seen` is what Airflow saw from outside."""
    if pod is None:
        return PodFailure(
            "The pod is gone: it was deleted, or its node was lost. The next try goes on from what was saved. "
            f"({_last_line(seen)})",
            "cluster",
        )
    name, status = pod.metadata.name, pod.status
    states = [s.state for s in status.container_statuses or [] if s.name == container]
    terminated = states[0].terminated if states else None
    if terminated is not None and terminated.reason == "OOMKilled":
        return _out_of_memory(pod, container)
    if terminated is not None and (words := last_words(terminated.message or "")):
        if words.exit_code in PERMANENT_EXIT_CODES:
            return PodFailure(words.message, "permanent", said_by_step=True)
        fault: Fault = "cluster" if words.exit_code == _EXIT_TRY_AGAIN else "step"
        return PodFailure(words.message, fault, said_by_step=True)
    if status.reason in _TAKEN_AWAY:
        return PodFailure(f"Pod {name} was taken away ({status.reason}): {status.message or 'no message'}", "cluster")
    if status.reason == "DeadlineExceeded":
        return PodFailure(f"Pod {name} ran longer than its deadline: {status.message or seen}", "step")
    # The kubelet may have forgotten how its container ended, and a step that was just starting dies without a word.
    if pod.metadata.deletion_timestamp and status.phase != "Pending":
        return PodFailure(f"Pod {name} was deleted. The next try goes on from what was saved.", "cluster")
    if terminated is not None and terminated.exit_code in _KILLED:
        by = _KILLED[terminated.exit_code]
        return PodFailure(f"The step in pod {name} was killed ({by}) before it could say why.", "cluster")
    if terminated is not None and terminated.exit_code:
        last = _last_line(terminated.message or "")
        return PodFailure(f"The step in pod {name} exited with code {terminated.exit_code}: {last}", "step")
    return _never_started(pod, states[0].waiting if states else None, seen)


def not_created(error: Exception) -> PodFailure:
    """The cluster refused the pod (quota, rights, Pod Security, a bad template), or could not be reached."""
    status, body = getattr(error, "status", None), str(getattr(error, "body", ""))
    if not status:
        return not_answered(error)
    try:
        reason = str(json.loads(body)["message"])
    except (ValueError, KeyError, TypeError):
        reason = str(error)
    return PodFailure(
        f"The pod was refused ({status}): {reason}", "cluster" if int(status) >= _SERVER_ERROR else "step"
    )


def not_answered(error: Exception) -> PodFailure:
    """The Kubernetes API is away; the pod, if there is one, goes on without us, and the next try finds it."""
    return PodFailure(f"The Kubernetes API did not answer: {_last_line(str(error))}", "cluster")


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no message"])[-1]


def _out_of_memory(pod: Any, container: str) -> PodFailure:
    limits = next(c.resources.limits for c in pod.spec.containers if c.name == container)
    return PodFailure(
        f"Pod {pod.metadata.name} ran out of memory: its container needed more than its limit of {limits['memory']}. "
        "Raise the limit in its template (config/pods), or ask for a smaller size or fewer infer_frames.",
        "permanent",
    )


def _never_started(pod: Any, waiting: Any | None, seen: str) -> PodFailure:
    """A pod that is still pending or running: Airflow's patience ended."""
    name, status = pod.metadata.name, pod.status
    if waiting is not None and "mage" in (waiting.reason or ""):
        fault: Fault = "permanent" if waiting.reason in _NO_IMAGE_NAME else "step"
        image = pod.spec.containers[0].image
        return PodFailure(
            f"Image {image!r} cannot be pulled ({waiting.reason}: {waiting.message}): check its name in the pod's "
            "template (config/pods) and the node's access to the registry.",
            fault,
        )
    unscheduled = [c for c in status.conditions or [] if c.type == "PodScheduled" and c.status != "True"]
    if unscheduled:
        return PodFailure(
            f"No node took pod {name} in time: {unscheduled[0].message or 'not scheduled'} Check nodeSelector, "
            "tolerations and resources in its template (config/pods), free a node, or raise S2V_POD_SCHEDULE_SECONDS.",
            "permanent",
        )
    return PodFailure(f"Pod {name} failed in phase {status.phase}: {_last_line(seen)}", "step")
