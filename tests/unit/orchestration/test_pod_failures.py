"""Check the reason that is reported for a failed pod, and whether the step is tried again."""

from datetime import UTC, datetime
from typing import Any

import pytest

from s2v_tasks.orchestration.pod_failures import judge
from tests.unit.orchestration.pods import ended, pod, words


@pytest.mark.parametrize("fields", [{}, {"is_recorded": False}], ids=["recorded", "not recorded"])
@pytest.mark.parametrize(
    ("exit_code", "fault"), [(65, "permanent"), (78, "permanent"), (2, "permanent"), (75, "environment"), (1, "step")]
)
def test_a_reason_of_the_step_is_quoted(exit_code: int, fault: str, fields: dict[str, bool]) -> None:
    """The step's own exit code decides (torchrun's is always 1). Airflow stores a reason that the step could not."""
    failure = judge(pod(ended(1, words(exit_code, **fields)), phase="Failed"), "base", "seen")
    assert (failure.message, failure.fault, failure.reported_by_step) == ("rank 0: size 9*9.", fault, not fields)


def test_out_of_memory_is_final() -> None:
    """The message names limit and remedy, also if a remaining rank reports that it lost the killed one."""
    failure = judge(pod(ended(1, words(75), "OOMKilled"), phase="Failed"), "base", "seen")
    assert (failure.fault, failure.reported_by_step) == ("permanent", False)
    assert "limit of 64Gi" in failure.message
    assert "infer_frames" in failure.message


@pytest.mark.parametrize(
    ("status", "fault", "expected"),
    [
        ({"phase": "Failed", "reason": "Evicted", "message": "low on disk"}, "environment", r"Evicted.*low on disk"),
        (
            {"phase": "Failed", "reason": "Evicted", "message": "The node was low on resource: ephemeral-storage. "},
            "environment",
            "Evicted.*low on resource",
        ),
        (
            {
                "phase": "Failed",
                "reason": "Evicted",
                "message": 'Usage of EmptyDir volume "scratch" exceeds the limit "16Gi". ',
                "state": ended(1, words(75)),
            },
            "permanent",
            r"more room than it has: .*\"scratch\" exceeds .*sizeLimit",
        ),
        (
            {
                "phase": "Failed",
                "reason": "Evicted",
                "message": "Pod ephemeral local storage usage exceeds the total limit of containers 20Gi. ",
            },
            "permanent",
            "limit of containers 20Gi. Raise ephemeral-storage",
        ),
        (
            {
                "phase": "Failed",
                "reason": "Evicted",
                "message": 'Container base exceeded its local ephemeral storage limit "20Gi". ',
            },
            "permanent",
            'more room than it has: .*limit "20Gi". Raise ephemeral-storage',
        ),
        (
            {"phase": "Failed", "reason": "OutOfmemory", "message": "Node: what it requests exceeds the free limit"},
            "environment",
            r"node refused pod render-clip-x \(OutOfmemory\)",
        ),
        (
            {"phase": "Failed", "reason": "UnexpectedAdmissionError", "message": "Allocate failed: no healthy devices"},
            "environment",
            r"node refused pod render-clip-x \(UnexpectedAdmissionError\): Allocate failed: no healthy devices",
        ),
        ({"phase": "Failed", "reason": "NodeLost"}, "environment", "NodeLost"),
        ({"phase": "Failed", "reason": "OutOfcpu"}, "environment", r"node refused pod .* \(OutOfcpu\): no message"),
        ({"phase": "Failed", "reason": "DeadlineExceeded"}, "step", "longer than its deadline: Traceback\nseen last$"),
        (
            {"phase": "Failed", "reason": "DeadlineExceeded", "message": "active longer than 600 s"},
            "step",
            "longer than its deadline: active longer than 600 s$",
        ),
        ({"phase": "Failed", "state": ended(137)}, "environment", "SIGKILL"),
        ({"phase": "Failed", "state": ended(143)}, "environment", "SIGTERM"),
        ({"phase": "Failed", "state": ended(3, "no such file")}, "step", "code 3: no such file"),
        (
            {"phase": "Pending", "state": {"waiting": {"reason": "ErrImagePull", "message": "not found"}}},
            "step",
            r"'s2v-engine:9' cannot be pulled \(ErrImagePull: not found\)",
        ),
        (
            {
                "phase": "Pending",
                "state": {
                    "waiting": {"reason": "ErrImagePull", "message": "dial tcp 10.0.0.9:443: connection refused"}
                },
            },
            "environment",
            "cannot be pulled .*connection refused",
        ),
        (
            {
                "phase": "Pending",
                "state": {
                    "waiting": {
                        "reason": "ImagePullBackOff",
                        "message": 'Back-off pulling image "reg/x": dial tcp: lookup reg: read udp: connection refused',
                    }
                },
            },
            "step",
            "cannot be pulled .*lookup reg",
        ),
        ({"phase": "Pending", "state": {"waiting": {"reason": "InvalidImageName"}}}, "permanent", "cannot be pulled"),
        (
            {
                "phase": "Pending",
                "state": {
                    "waiting": {
                        "reason": "CreateContainerConfigError",
                        "message": 'secret "s2v-credentials" not found',
                    }
                },
            },
            "permanent",
            'cannot start: secret "s2v-credentials" not found. Create .* in namespace s2v',
        ),
        (
            {
                "phase": "Failed",
                "state": {"waiting": {"reason": "PodInitializing"}},
                "initContainerStatuses": [
                    {
                        "name": "warm-up",
                        "state": {"terminated": {"exitCode": 4, "message": "no such bucket"}},
                        "image": "",
                        "imageID": "",
                        "ready": False,
                        "restartCount": 0,
                    }
                ],
            },
            "step",
            "Init container 'warm-up' of pod render-clip-x exited with code 4: no such bucket",
        ),
        (
            {
                "phase": "Pending",
                "conditions": [
                    {"type": "PodScheduled", "status": "False", "message": "0/1 nodes are available: 1 no GPU."}
                ],
            },
            "permanent",
            r"No node took .*0/1 nodes are available: 1 no GPU\..*S2V_POD_SCHEDULE_SECONDS",
        ),
        (
            {"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False"}]},
            "permanent",
            "No node took pod render-clip-x in time: not scheduled Check nodeSelector",
        ),
        ({"phase": "Running"}, "step", "phase Running: seen last"),
    ],
)
def test_a_pod_without_a_reason_is_judged_by_its_status(status: dict[str, Any], fault: str, expected: str) -> None:
    """The status of the pod gives the message and decides about another try."""
    import re

    failure = judge(pod(status.pop("state", None), **status), "base", "Traceback\nseen last")
    assert re.search(expected, failure.message)
    assert (failure.fault, failure.reported_by_step) == (fault, False)


def test_a_pod_that_is_gone_is_the_clusters_fault() -> None:
    """A pod that was deleted, or lost with its node, is no failure of the step."""
    failure = judge(None, "base", "Pod s2v/x not found")
    assert (failure.fault, "not found" in failure.message) == ("environment", True)


@pytest.mark.parametrize("state", [{"waiting": {"reason": "ContainerCreating"}}, ended(1, "SignalException: 15")])
def test_a_deleted_pod_is_the_clusters_fault_in_any_state(state: dict[str, Any]) -> None:
    """A deleted pod is no failure of the step, whether its container never started or ended by a signal."""
    deleted = pod(state, phase="Failed")
    deleted.metadata.deletion_timestamp = datetime.now(UTC)
    failure = judge(deleted, "base", "seen")
    assert (failure.fault, "was deleted" in failure.message) == ("environment", True)


def test_a_deleted_pod_that_never_had_its_image_is_still_the_steps_fault() -> None:
    """A Pending pod that Airflow deleted after its time limit counts as a failure of the step."""
    waiting = {"waiting": {"reason": "ImagePullBackOff", "message": "not found"}}
    deleted = pod(waiting, phase="Pending")
    deleted.metadata.deletion_timestamp = datetime.now(UTC)
    failure = judge(deleted, "base", "seen")
    assert (failure.fault, "cannot be pulled" in failure.message) == ("step", True)


@pytest.mark.parametrize(
    "reason", ["Evicted", "Preempting", "Preempted", "NodeLost", "NodeShutdown", "Shutdown", "Terminated"]
)
def test_each_kind_of_eviction_is_the_clusters_fault(reason: str) -> None:
    """The reason of the eviction is quoted, and the last output of the container does not count."""
    failure = judge(pod(ended(1, "SignalException: 15"), phase="Failed", reason=reason), "base", "seen")
    assert (failure.fault, f"({reason}): no message" in failure.message) == ("environment", True)


@pytest.mark.parametrize(
    "message",
    [
        "dial tcp 10.0.0.9:443: connect: connection reset by peer",
        'Head "https://registry/v2/x": EOF',
        "dial tcp 10.0.0.9:443: connect: no route to host",
        "dial tcp 10.0.0.9:443: connect: network is unreachable",
        "net/http: TLS handshake timeout",
        "Back-off pulling image\ndial tcp 10.0.0.9:443: connect: connection refused",
    ],
)
def test_a_registry_that_is_away_is_the_clusters_fault(message: str) -> None:
    """A registry that does not answer is no failure of the step."""
    waiting = {"waiting": {"reason": "ErrImagePull", "message": message}}
    assert judge(pod(waiting, phase="Pending"), "base", "seen").fault == "environment"


@pytest.mark.parametrize("reason", ["InvalidImageName", "ErrImageNeverPull"])
def test_an_image_name_that_is_invalid_is_final(reason: str) -> None:
    """An invalid image name is not tried again."""
    waiting = {"waiting": {"reason": reason, "message": "couldn't parse image reference"}}
    assert judge(pod(waiting, phase="Pending"), "base", "seen").fault == "permanent"


def test_only_the_container_of_the_step_is_judged() -> None:
    """The end of a sidecar does not count; the message of the step does."""
    with_sidecar = pod(ended(1, words(65)), phase="Failed")
    sidecar = pod(ended(0), phase="Failed").status.container_statuses[0]
    sidecar.name = "a-proxy"
    with_sidecar.status.container_statuses.insert(0, sidecar)
    assert judge(with_sidecar, "base", "seen").message == "rank 0: size 9*9."


def test_the_limit_that_was_too_small_is_that_of_the_step() -> None:
    """The message has the memory limit of the step and not that of a sidecar."""
    with_sidecar = pod(ended(137, reason="OOMKilled"), phase="Failed")
    for sidecar in (pod().spec.containers[0], pod().spec.containers[0]):
        sidecar.name, sidecar.resources.limits = "a-proxy", {"memory": "1Gi"}
        with_sidecar.spec.containers.insert(0, sidecar)
    with_sidecar.spec.containers[0].resources.limits = None
    assert "its limit of 64Gi" in judge(with_sidecar, "base", "seen").message


def test_a_pod_that_has_its_node_did_not_lack_one() -> None:
    """Only the condition PodScheduled says that a node was missing."""
    conditions = [
        {"type": "PodScheduled", "status": "True"},
        {"type": "Ready", "status": "False", "message": "containers with unready status"},
    ]
    failure = judge(pod(phase="Pending", conditions=conditions), "base", "Traceback\nstarted too slowly")
    assert failure.message == "Pod render-clip-x failed in phase Pending: started too slowly"
    assert failure.fault == "step"


@pytest.mark.parametrize(
    ("status", "fault", "expected"),
    [
        ({"phase": "Running", "reason": "Odd", "state": {"running": {}}}, "step", "failed in phase Running: seen"),
        ({"phase": "Failed", "reason": "Odd", "state": ended(3, "no file")}, "step", "exited with code 3: no file"),
        ({"phase": "Pending", "reason": "Odd"}, "step", "failed in phase Pending: seen"),
        ({"phase": "Failed"}, "step", "failed in phase Failed: seen"),
        ({"phase": "Failed", "state": ended(0)}, "step", "failed in phase Failed: seen"),
        ({"phase": "Failed", "state": ended(4)}, "step", "exited with code 4: no message"),
        ({"phase": "Failed", "state": {"terminated": {"exitCode": 4}}}, "step", "exited with code 4: no message"),
        ({"phase": "Pending", "state": {"waiting": {"reason": "ContainerCreating"}}}, "step", "phase Pending: seen"),
        ({"phase": "Pending", "state": {"waiting": {}}}, "step", "phase Pending: seen"),
    ],
)
def test_an_unknown_failure_is_reported_as_it_was_seen(status: dict[str, Any], fault: str, expected: str) -> None:
    """A status without a rule gives a message with phase or exit code and the last log lines."""
    failure = judge(pod(status.pop("state", None), **status), "base", "seen")
    assert (failure.fault, expected in failure.message) == (fault, True), failure


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ({"terminated": {"exitCode": 0}}, "failed in phase Failed: seen"),
        ({"running": {}}, "failed in phase Failed: seen"),
        ({"terminated": {"exitCode": 4, "reason": "Error", "message": "one\ntwo\n\n"}}, "exited with code 4: two"),
        ({"terminated": {"exitCode": 4, "reason": "ContainerCannotRun"}}, "exited with code 4: ContainerCannotRun"),
        ({"terminated": {"exitCode": 4}}, "exited with code 4: no message"),
    ],
)
def test_a_failed_init_container_is_the_reason(state: dict[str, Any], expected: str) -> None:
    """Only a failed init container is named and quoted."""
    status = {"name": "fetch", "state": state, "image": "", "imageID": "", "ready": True, "restartCount": 0}
    failure = judge(pod(phase="Failed", initContainerStatuses=[status]), "base", "seen")
    assert failure.message.endswith(expected)
