"""Check the causes of pods that the cluster refuses to create."""

import json
from typing import Any

import pytest
from kubernetes.client import ApiException
from urllib3.exceptions import HTTPError

from s2v_tasks.orchestration.pod_failures import not_answered, not_created


class Response:
    """A response from which the client of Kubernetes creates its objects."""

    def __init__(self, data: Any) -> None:
        self.data = json.dumps(data)


@pytest.mark.parametrize("body", ["not JSON", "{}", "[]", "null", '"text"'])
def test_a_refusal_without_a_message_is_reported_by_its_status(body: str) -> None:
    """An answer without Kubernetes' message, as of a proxy, is reported by its status."""
    refused = ApiException(status=403, reason="Forbidden")
    refused.body = body
    failure = not_created(refused)
    assert (failure.fault, failure.message.splitlines()[0]) == ("step", "The pod was refused (403): (403)")


def test_a_status_from_500_on_is_temporary() -> None:
    """500 is a temporary failure of the server, 499 is a refusal."""
    assert [not_created(ApiException(status=status)).fault for status in (499, 500)] == ["step", "environment"]


QUOTA = (
    'pods "render-clip-x" is forbidden: exceeded quota: gpus, requested: requests.nvidia.com/gpu=1, '
    "used: requests.nvidia.com/gpu=4, limited: requests.nvidia.com/gpu=4"
)


@pytest.mark.parametrize(
    ("status", "message", "fault"),
    [
        (403, QUOTA, "environment"),
        (403, 'pods is forbidden: User "airflow-worker" cannot create resource "pods"', "step"),
        (403, 'pods "x" is forbidden: violates PodSecurity "restricted:latest": runAsNonRoot != true', "step"),
        (403, 'pods "x" is forbidden: failed quota: gpus: must specify limits.cpu for: base', "step"),
        (409, 'Operation cannot be fulfilled on resourcequotas "gpus": the object has been modified', "environment"),
        (429, "Too many requests, please try again later.", "environment"),
        (422, 'Pod "x" is invalid: spec.containers[0].image: Required value', "step"),
        (503, "etcdserver: leader changed", "environment"),
    ],
)
def test_the_reason_of_a_refused_pod(status: int, message: str, fault: str) -> None:
    """A repeated refusal is a fault of the template; a used-up quota or a failing server is temporary."""
    refused = ApiException(status=status, reason="Forbidden")
    refused.body = json.dumps({"kind": "Status", "status": "Failure", "message": message, "code": status})
    failure = not_created(refused)
    assert (failure.message, failure.fault) == (f"The pod was refused ({status}): {message}", fault)


def test_a_quota_that_is_smaller_than_a_pod_is_a_permanent_fault() -> None:
    """A pod that requests more than all of a quota is not tried again; amounts are compared as quantities."""
    refused = ApiException(status=403, reason="Forbidden")
    message = (
        'pods "x" is forbidden: exceeded quota: team, requested: requests.cpu=500m,requests.memory=64Gi, '
        "used: requests.cpu=0,requests.memory=0, limited: requests.cpu=1,requests.memory={}"
    )
    refused.body = json.dumps({"message": message.format("40000Mi")})
    failure = not_created(refused)
    assert failure.fault == "permanent"
    assert failure.message.startswith(
        "The pod was refused (403): it requests requests.memory=64Gi, and the quota team of the namespace allows "
        "40000Mi in all. Raise the quota, or lower S2V_NPROC_PER_NODE"
    )
    refused.body = json.dumps({"message": message.format("64Gi")})
    assert not_created(refused).fault == "environment"


def test_an_api_that_does_not_answer_refuses_nothing() -> None:
    """An unavailable API is a fault of the cluster, and the answer of a proxy in its place is quoted."""
    assert not_created(ApiException(status=503)).fault == "environment"
    assert not_created(HTTPError("refused")) == not_answered(HTTPError("refused"))
    assert not_answered(HTTPError("refused")).fault == "environment"
