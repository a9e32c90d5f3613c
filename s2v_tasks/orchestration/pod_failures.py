"""Find the cause of a failed pod, as one sentence, and its fault, which defines the retries (`retry_policy`).

| cause | fault |
|---|---|
| the step reported a reason and an exit code | that of the exit code |
| more memory (OOMKilled) or disk (Evicted) than its limits | permanent: it would fail again after an hour of GPU time |
| no node took the pod within S2V_POD_SCHEDULE_SECONDS | permanent |
| the name of the image is not valid, a Secret or ConfigMap is missing | permanent |
| the quota of the namespace is smaller than one pod | permanent |
| evicted, preempted, refused by its node, node lost, killed, pod deleted or gone | environment |
| the quota of the namespace is used up, the API is busy or does not answer | environment |
| the registry does not answer | environment |
| pod refused, no such image, start or run too slow, any other exit | step |
"""

import json
import re
import signal
from dataclasses import dataclass
from typing import Any

from kubernetes.utils.quantity import parse_quantity

from s2v_tasks.orchestration.retry_policy import Fault
from s2v_tasks.orchestration.step_commands import reported_failure

_KILLED = {128 + number: number.name for number in (signal.SIGKILL, signal.SIGTERM)}
_SERVER_ERROR = 500
_BUSY = frozenset({409, 429})  # two requests for a quota at the same moment; too many requests
_QUOTA_USED_UP = "exceeded quota"
_QUOTA_AMOUNTS = re.compile(r"exceeded quota: (.+?), requested: (\S+), used: \S+, limited: (\S+)")
# Reasons of the kubelet or the scheduler for ending a pod without a fault of its own.
_TAKEN_AWAY = frozenset({"Evicted", "Preempting", "Preempted", "NodeLost", "NodeShutdown", "Shutdown", "Terminated"})
# The pod itself wrote too much. If the node is short of disk, the message is "was low on resource" instead.
_OVER_LIMIT = re.compile(r"exceed(s|ed) (the|its) .*limit")
_NO_IMAGE_NAME = frozenset({"InvalidImageName", "ErrImageNeverPull"})
# Not for a failed DNS lookup: the name may be misspelt.
_REGISTRY_AWAY = re.compile(
    r"^(?!.*\blookup\b).*(connection re(fused|set)|EOF|no route to host|network is unreachable|TLS handshake)",
    re.DOTALL,
)


@dataclass(frozen=True)
class PodFailure:
    """Cause of a failed pod. `fault` defines the retries; a reason with `reported_by_step` is already stored."""

    message: str
    fault: Fault
    reported_by_step: bool = False


def judge(pod: Any | None, container: str, seen: str) -> PodFailure:
    """Return the failure of a V1Pod from its last known state (None: it is gone). `seen`: the error in Airflow."""
    if pod is None:
        return PodFailure(
            "The pod is gone: it was deleted, or its node was lost. The next try continues from the saved state. "
            f"({_last_line(seen)})",
            "environment",
        )
    states = [s.state for s in pod.status.container_statuses or [] if s.name == container]
    terminated, waiting = (states[0].terminated, states[0].waiting) if states else (None, None)
    return (
        _beyond_its_limits(pod, container, terminated)
        or _reported_by_step(terminated)
        or _done_by_cluster(pod, seen)
        or _ended(pod, terminated)
        or _never_started(pod, waiting, seen)
    )


def _beyond_its_limits(pod: Any, container: str, terminated: Any | None) -> PodFailure | None:
    """Return the failure of a pod that exceeded its memory or disk; the report of the step is ignored."""
    name, status = pod.metadata.name, pod.status
    if terminated is not None and terminated.reason == "OOMKilled":
        limits = next(c.resources.limits for c in pod.spec.containers if c.name == container)
        return PodFailure(
            f"Pod {name} ran out of memory: its container needed more than its limit of {limits['memory']}. "
            "Raise the limit in its template (config/pods), or use a smaller size or fewer infer_frames.",
            "permanent",
        )
    if status.reason == "Evicted" and _OVER_LIMIT.search(status.message or ""):
        return PodFailure(
            f"Pod {name} needed more room than it has: {status.message.strip()} Raise ephemeral-storage, or the "
            "sizeLimit of that volume, in its template (config/pods).",
            "permanent",
        )
    return None


def _reported_by_step(terminated: Any | None) -> PodFailure | None:
    words = reported_failure(terminated.message or "") if terminated is not None else None
    return None if words is None else PodFailure(words.message, words.fault, words.reported_by_step)


def _done_by_cluster(pod: Any, seen: str) -> PodFailure | None:
    name, status = pod.metadata.name, pod.status
    if status.reason in _TAKEN_AWAY:
        return PodFailure(
            f"Kubernetes stopped pod {name} ({status.reason}): {status.message or 'no message'}", "environment"
        )
    if status.reason == "DeadlineExceeded":
        return PodFailure(f"Pod {name} ran longer than its deadline: {status.message or seen}", "step")
    # The kubelet can refuse a pod, for example if a device plugin is not ready or the node is full by now.
    if status.phase == "Failed" and status.reason and not status.container_statuses:
        return PodFailure(
            f"The node refused pod {name} ({status.reason}): {status.message or 'no message'}", "environment"
        )
    # The kubelet may have lost the state of the container, and a step that was just starting reports nothing.
    if pod.metadata.deletion_timestamp and status.phase != "Pending":
        return PodFailure(f"Pod {name} was deleted. The next try continues from the saved state.", "environment")
    return None


def _ended(pod: Any, terminated: Any | None) -> PodFailure | None:
    name = pod.metadata.name
    if terminated is not None and terminated.exit_code in _KILLED:
        by = _KILLED[terminated.exit_code]
        return PodFailure(f"The step in pod {name} was killed ({by}) before it could report a reason.", "environment")
    if terminated is not None and terminated.exit_code:
        last = _last_line(terminated.message or "")
        return PodFailure(f"The step in pod {name} exited with code {terminated.exit_code}: {last}", "step")
    for init in pod.status.init_container_statuses or []:  # the templates of this repository have none
        ended = init.state.terminated
        if ended is not None and ended.exit_code:
            last = _last_line(ended.message or ended.reason or "")
            return PodFailure(
                f"Init container {init.name!r} of pod {name} exited with code {ended.exit_code}: {last}", "step"
            )
    return None


def _larger_than_quota(reason: str) -> str | None:
    """Return a sentence about a pod that needs more than all of a quota; None if it fits when others have ended."""
    for quota, requested, limited in _QUOTA_AMOUNTS.findall(reason):
        limits = dict(amount.split("=", 1) for amount in limited.split(","))
        for name, amount in (pair.split("=", 1) for pair in requested.split(",")):
            if name in limits and parse_quantity(amount) > parse_quantity(limits[name]):
                return (
                    f"it requests {name}={amount}, and the quota {quota} of the namespace allows {limits[name]} in "
                    "all. Raise the quota, or lower S2V_NPROC_PER_NODE or the amount in the template (config/pods)."
                )
    return None


def not_created(error: Exception) -> PodFailure:
    """Return the failure of a pod that the cluster refused (quota, rights, Pod Security, template) or did not get."""
    status, body = getattr(error, "status", None), str(getattr(error, "body", ""))
    if not status:
        return not_answered(error)
    try:
        reason = str(json.loads(body)["message"])
    except (ValueError, KeyError, TypeError):
        reason = str(error)
    if larger := _larger_than_quota(reason):
        return PodFailure(f"The pod was refused ({status}): {larger}", "permanent")
    passes = int(status) >= _SERVER_ERROR or int(status) in _BUSY or _QUOTA_USED_UP in reason
    return PodFailure(f"The pod was refused ({status}): {reason}", "environment" if passes else "step")


def not_answered(error: Exception) -> PodFailure:
    """Return the failure for an API that does not answer. The pod continues, and the next try finds it."""
    return PodFailure(f"The Kubernetes API did not answer: {_last_line(str(error))}", "environment")


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no message"])[-1]


def _never_started(pod: Any, waiting: Any | None, seen: str) -> PodFailure:
    """Return the failure of a pod that was still pending or running at its timeout."""
    name, status = pod.metadata.name, pod.status
    if waiting is not None and "mage" in (waiting.reason or ""):
        fault: Fault = "permanent" if waiting.reason in _NO_IMAGE_NAME else "step"
        if _REGISTRY_AWAY.search(waiting.message or ""):
            fault = "environment"
        image = pod.spec.containers[0].image
        return PodFailure(
            f"Image {image!r} cannot be pulled ({waiting.reason}: {waiting.message}): check its name in the pod's "
            "template (config/pods) and the node's access to the registry.",
            fault,
        )
    if waiting is not None and waiting.reason == "CreateContainerConfigError":  # the kubelet has tried until now
        return PodFailure(
            f"Pod {name} cannot start: {waiting.message}. Create what its template (config/pods) names in namespace "
            f"{pod.metadata.namespace}, or correct the template.",
            "permanent",
        )
    unscheduled = [c for c in status.conditions or [] if c.type == "PodScheduled" and c.status != "True"]
    if unscheduled:
        return PodFailure(
            f"No node took pod {name} in time: {unscheduled[0].message or 'not scheduled'} Check nodeSelector, "
            "tolerations and resources in its template (config/pods), free a node, or raise S2V_POD_SCHEDULE_SECONDS.",
            "permanent",
        )
    return PodFailure(f"Pod {name} failed in phase {status.phase}: {_last_line(seen)}", "step")
