"""An API server of Kubernetes in this process, and the state that Airflow keeps between tries."""

import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from kubernetes.client import ApiClient, Configuration, CoreV1Api

from s2v_tasks.orchestration.pods import StepPodOperator
from s2v_tasks.orchestration.step_operators import step_task
from s2v_tasks.schemas.steps import ENCODE_CONDITIONS
from s2v_tasks.settings import load_settings

PODS = "/api/v1/namespaces/s2v/pods"


QUOTA = (
    'pods "render-clip-x" is forbidden: exceeded quota: gpus, requested: requests.nvidia.com/gpu=1, '
    "used: requests.nvidia.com/gpu=4, limited: requests.nvidia.com/gpu=4"
)


class _Handler(BaseHTTPRequestHandler):
    """Answers requests as the API server does."""

    cluster: "Cluster"

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if url.path == PODS:
            return self.answer(200, {"items": self.cluster.selected(parse_qs(url.query))})
        name = url.path.removeprefix(f"{PODS}/")
        if "/" in name:
            return self.answer(200, "")  # its log
        if name not in self.cluster.pods:
            return self.answer(404, {"kind": "Status", "status": "Failure", "code": 404})
        return self.answer(200, self.cluster.pods[name])

    def do_POST(self) -> None:
        pod = self.body()
        if self.cluster.refusal:
            code, message = self.cluster.refusal
            status = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure"}
            return self.answer(code, status | {"message": message, "reason": "Forbidden", "code": code})
        self.cluster.pods[pod["metadata"]["name"]] = pod | {"status": {"phase": "Pending"}}
        return self.answer(201, pod)

    def do_PATCH(self) -> None:
        pod = self.cluster.pods[self.path.removeprefix(f"{PODS}/")]
        pod["metadata"]["labels"] |= self.body()["metadata"]["labels"]
        self.answer(200, pod)

    def do_DELETE(self) -> None:  # the kubelet of a dead node never ends what is deleted
        name = urlsplit(self.path).path.removeprefix(f"{PODS}/")
        if name in self.cluster.missing:
            return self.answer(404, {"kind": "Status", "status": "Failure", "code": 404})
        self.cluster.deleted.append(name)
        return self.answer(200, {"kind": "Status", "status": "Success"})

    def body(self) -> Any:
        return json.loads(self.rfile.read(int(self.headers["Content-Length"])))

    def answer(self, code: int, document: Any) -> None:
        data = json.dumps(document).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


class Cluster:
    """An API server that keeps pods as they are given and answers creations with `refusal` while there is one.

    A listing shows those of `left` that its selector asks for.
    """

    def __init__(self) -> None:
        self.pods: dict[str, dict[str, Any]] = {}
        self.refusal: tuple[int, str] | None = None
        self.left: list[dict[str, Any]] = []  # what a listing shows
        self.deleted: list[str] = []
        self.missing: set[str] = set()  # listed, but gone when they are to be deleted
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"cluster": self}))

    def selected(self, query: dict[str, list[str]]) -> list[dict[str, Any]]:
        """The pods of `left` that have all labels of the selector: name=value, name!=value or a name alone."""
        (selector,) = query.get("labelSelector", [""])
        return [pod for pod in self.left if all(_has(pod, term) for term in selector.split(",") if term)]


def _has(pod: dict[str, Any], term: str) -> bool:
    labels = pod["metadata"].get("labels", {})
    name, _, value = term.partition("=")
    if name.endswith("!"):
        return bool(labels.get(name[:-1]) != value)
    return bool(labels.get(name) == value) if "=" in term else name in labels


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A cluster, and the operator's client for it."""
    monkeypatch.setenv("S2V_EXECUTION", "kubernetes")
    load_settings.cache_clear()
    cluster = Cluster()
    threading.Thread(target=cluster.server.serve_forever, daemon=True).start()
    client = CoreV1Api(ApiClient(Configuration(host=f"http://127.0.0.1:{cluster.server.server_port}")))
    hook = SimpleNamespace(core_v1_client=client, is_in_cluster=False, get_pod=client.read_namespaced_pod)
    monkeypatch.setattr(StepPodOperator, "hook", hook)
    monkeypatch.setattr("s2v_tasks.orchestration.pods.KubernetesHook", lambda: hook)
    yield cluster
    client.api_client.close()
    cluster.server.shutdown()
    cluster.server.server_close()


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The reasons that are recorded in the metadata store."""
    reasons: list[str] = []
    monkeypatch.setattr("s2v_tasks.orchestration.step_operators.record_failure", lambda *call: reasons.append(call[3]))
    return reasons


class Store(dict[str, Any]):
    """The state that Airflow keeps for a task between tries."""

    def set(self, key: str, value: Any) -> None:
        self[key] = value


def context(store: Store, operator: StepPodOperator, run_id: str = "manual__1", max_tries: int = 10) -> dict[str, Any]:
    ti = SimpleNamespace(
        dag_id="speech_to_video", task_id=operator.task_id, run_id=run_id, map_index=-1, try_number=1,
        max_tries=max_tries, start_date=datetime(2026, 1, 1, tzinfo=UTC), xcom_push=lambda **_: None,
    )  # fmt: skip
    run = SimpleNamespace(start_date=datetime(2026, 1, 1, tzinfo=UTC), run_id=run_id)
    params = {"job_id": "my-job", "prompt": "A person."}
    return {
        "params": params, "run_id": run_id, "ti": ti, "task_instance": ti, "dag": None, "dag_run": run,
        "task_state_store": store,
    }  # fmt: skip


def execute(store: Store, run_id: str = "manual__1", max_tries: int = 10) -> None:
    operator = step_task(ENCODE_CONDITIONS)
    assert isinstance(operator, StepPodOperator)
    operator.pre_execute({})
    operator.execute(context(store, operator, run_id, max_tries))
