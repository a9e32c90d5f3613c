"""What the operator makes of a cluster that refuses a pod or loses its node, told by an API server over HTTP."""

import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import pytest
from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowException, AirflowFailException, TaskDeferred
from kubernetes.client import ApiClient, Configuration, CoreV1Api

from s2v_tasks.orchestration.execution import step_task
from s2v_tasks.orchestration.pods import CloseJobOfPodsOperator, StepPodOperator
from s2v_tasks.orchestration.retries import OWN_FAILURES
from s2v_tasks.settings import load_settings

PODS = "/api/v1/namespaces/s2v/pods"
QUOTA = (
    'pods "render-clip-x" is forbidden: exceeded quota: gpus, requested: requests.nvidia.com/gpu=1, '
    "used: requests.nvidia.com/gpu=4, limited: requests.nvidia.com/gpu=4"
)


class Cluster:
    """An API server that keeps pods as they are given and answers creations with `refusal` while there is one."""

    def __init__(self) -> None:
        self.pods: dict[str, dict[str, Any]] = {}
        self.refusal: tuple[int, str] | None = None
        self.left: list[dict[str, Any]] = []  # what a listing shows
        self.deleted: list[str] = []
        cluster = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path = urlsplit(self.path).path
                name = path.removeprefix(f"{PODS}/")
                self.answer(200, cluster.pods.get(name, {"items": cluster.left}) if "/log" not in path else "")

            def do_POST(self) -> None:
                pod = self.body()
                if cluster.refusal:
                    code, message = cluster.refusal
                    status = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure"}
                    return self.answer(code, status | {"message": message, "reason": "Forbidden", "code": code})
                cluster.pods[pod["metadata"]["name"]] = pod | {"status": {"phase": "Pending"}}
                return self.answer(201, pod)

            def do_PATCH(self) -> None:
                pod = cluster.pods[self.path.removeprefix(f"{PODS}/")]
                pod["metadata"]["labels"] |= self.body()["metadata"]["labels"]
                self.answer(200, pod)

            def do_DELETE(self) -> None:  # the kubelet of a dead node never ends what is deleted
                cluster.deleted.append(self.path.removeprefix(f"{PODS}/"))
                self.answer(200, {"kind": "Status", "status": "Success"})

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

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)


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
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The reasons that are put on record."""
    reasons: list[str] = []
    monkeypatch.setattr("s2v_tasks.orchestration.pods.record_failure", lambda *call: reasons.append(call[3]))
    return reasons


class Store(dict[str, Any]):
    """What a task keeps over its tries."""

    def set(self, key: str, value: Any) -> None:
        self[key] = value


def context(store: Store, operator: StepPodOperator) -> dict[str, Any]:
    ti = SimpleNamespace(
        dag_id="speech_to_video", task_id=operator.task_id, run_id="manual__1", map_index=-1, try_number=1,
        max_tries=10, start_date=datetime(2026, 1, 1, tzinfo=UTC), xcom_push=lambda **_: None,
    )  # fmt: skip
    run = SimpleNamespace(start_date=datetime(2026, 1, 1, tzinfo=UTC), run_id="manual__1")
    params = {"job_id": "my-job", "prompt": "A person."}
    return {
        "params": params, "run_id": "manual__1", "ti": ti, "task_instance": ti, "dag": None, "dag_run": run,
        "task_state_store": store,
    }  # fmt: skip


def execute(store: Store) -> None:
    operator = step_task("encode-conditions")
    assert isinstance(operator, StepPodOperator)
    operator.pre_execute({})
    operator.execute(context(store, operator))


def test_a_used_up_quota_is_waited_for(cluster: Cluster, told: list[str]) -> None:
    """However often it is met, the step has not failed: each try says why, and the first with room has its pod."""
    store = Store()
    cluster.refusal = (403, QUOTA)
    for _ in range(OWN_FAILURES + 2):
        with pytest.raises(AirflowException, match=r"exceeded quota: gpus, .*limited: ") as seen:
            execute(store)
        assert not isinstance(seen.value, AirflowFailException)
    assert told == [f"The pod was refused (403): {QUOTA}"] * (OWN_FAILURES + 2)
    cluster.refusal = None
    with pytest.raises(TaskDeferred):
        execute(store)
    assert len(cluster.pods) == 1


def test_a_refusal_that_stays_is_final(cluster: Cluster, told: list[str]) -> None:
    """Rights or Pod Security: the template or the role is wrong, and a few tries show it."""
    store = Store()
    cluster.refusal = (403, 'pods is forbidden: User "system:serviceaccount:airflow:airflow-worker" cannot create')
    for _ in range(OWN_FAILURES):
        with pytest.raises(AirflowException, match="cannot create") as seen:
            execute(store)
        assert not isinstance(seen.value, AirflowFailException)
    with pytest.raises(AirflowFailException, match="cannot create"):
        execute(store)


def test_the_next_try_does_not_attach_to_the_pod_of_a_dead_node(cluster: Cluster, told: list[str]) -> None:
    """It cannot be ended, so nobody waits for that; the step has not failed, and begins in another pod."""
    store = Store()
    with pytest.raises(TaskDeferred):
        execute(store)
    ((name, pod),) = cluster.pods.items()
    pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    pod["status"] = {"phase": "Running"}
    event = {"status": "timeout", "name": name, "namespace": "s2v", "message": "its node does not answer any more."}
    operator = step_task("encode-conditions")
    with pytest.raises(AirflowException, match=f"Pod {name} was deleted") as seen:
        operator.trigger_reentry(context(store, operator), event)
    assert not isinstance(seen.value, AirflowFailException)
    assert len(told) == 1
    with pytest.raises(TaskDeferred):
        execute(store)
    assert len(cluster.pods) == 2


def test_close_job_deletes_what_a_run_has_left_once(cluster: Cluster) -> None:
    """Asked a second time, a kubelet can tell a minute late that a pod is gone."""
    deleted = {"deletionTimestamp": "2026-01-01T00:00:00Z"}
    cluster.left = [{"metadata": {"name": "left"}}, {"metadata": {"name": "ending"} | deleted}]
    with DAG("speech_to_video", schedule=None):
        close_job = step_task("close-job")
    assert isinstance(close_job, CloseJobOfPodsOperator)
    close_job._delete_pods({"run_id": "manual__1"})
    assert set(cluster.deleted) == {"left"}
