"""Pods in the states that Kubernetes reports."""

import json
from typing import Any

from kubernetes.client import ApiClient

from tests.unit.orchestration.test_pod_refusals import Response


def pod(state: dict[str, Any] | None = None, **status: Any) -> Any:
    """Return a V1Pod as the API server describes it."""
    if state is not None:
        status["containerStatuses"] = [
            {"name": "base", "state": state, "image": "", "imageID": "", "ready": False, "restartCount": 0}
        ]
    container = {"name": "base", "image": "s2v-engine:9", "resources": {"limits": {"memory": "64Gi"}}}
    body = {
        "metadata": {"name": "render-clip-x", "namespace": "s2v"},
        "spec": {"containers": [container]},
        "status": status,
    }
    return ApiClient().deserialize(Response(body), "V1Pod")


def ended(exit_code: int, message: str = "", reason: str = "Error") -> dict[str, Any]:
    return {"terminated": {"exitCode": exit_code, "message": message, "reason": reason}}


def words(exit_code: int, **fields: Any) -> str:
    return json.dumps({"exit_code": exit_code, "message": "rank 0: size 9*9."} | fields)
