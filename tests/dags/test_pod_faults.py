"""Check the operator with a cluster that refuses a pod or loses its node, simulated by an API server over HTTP."""

import json
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowException, AirflowFailException, TaskDeferred
from kubernetes.client import ApiClient, ApiException, Configuration, CoreV1Api
from urllib3.exceptions import HTTPError

from s2v_tasks.orchestration.pods import CloseJobOfPodsOperator, StepPodOperator
from s2v_tasks.orchestration.retry_policy import OWN_FAILURES
from s2v_tasks.orchestration.step_operators import step_task
from s2v_tasks.schemas.steps import CLOSE_JOB, ENCODE_CONDITIONS, RENDER_CLIP, STITCH
from s2v_tasks.settings import load_settings

PODS = "/api/v1/namespaces/s2v/pods"
QUOTA = (
    'pods "render-clip-x" is forbidden: exceeded quota: gpus, requested: requests.nvidia.com/gpu=1, '
    "used: requests.nvidia.com/gpu=4, limited: requests.nvidia.com/gpu=4"
)


class _Handler(BaseHTTPRequestHandler):
    """An answer of the API server."""

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
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The reasons that are put on record."""
    reasons: list[str] = []
    monkeypatch.setattr("s2v_tasks.orchestration.pods.record_failure", lambda *call: reasons.append(call[3]))
    return reasons


class Store(dict[str, Any]):
    """The state that a task keeps over its tries."""

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


def test_a_person_who_clears_the_task_gives_it_all_its_tries_again(cluster: Cluster, told: list[str]) -> None:
    """Airflow raises the number of tries by then: failures of before are counted no more, those of after are."""
    store = Store()
    cluster.refusal = (403, "pods is forbidden: cannot create")
    for max_tries in (10, 13, 24):
        seen = []
        for _ in range(OWN_FAILURES + 1):
            with pytest.raises(AirflowException, match="cannot create") as raised:
                execute(store, max_tries=max_tries)
            seen.append(type(raised.value))
        assert seen == [AirflowException] * OWN_FAILURES + [AirflowFailException]


def test_what_no_try_can_mend_is_final_at_once(cluster: Cluster, told: list[str]) -> None:
    """A name that is no image name; the pod is told of in the words of the cluster, on record too."""
    store = Store()
    with pytest.raises(TaskDeferred):
        execute(store)
    ((name, pod),) = cluster.pods.items()
    waiting = {"name": "base", "state": {"waiting": {"reason": "InvalidImageName", "message": "bad"}}}
    status = {"image": "", "imageID": "", "ready": False, "restartCount": 0}
    pod["status"] = {"phase": "Pending", "containerStatuses": [waiting | status]}
    event = {"status": "error", "name": name, "namespace": "s2v", "message": "Image cannot be pulled"}
    operator = step_task(ENCODE_CONDITIONS)
    with pytest.raises(AirflowFailException, match="cannot be pulled"):
        operator.trigger_reentry(context(store, operator), event)
    assert len(told) == 1


@pytest.mark.parametrize(
    "error", [ApiException(503, "Service Unavailable"), HTTPError("Connection refused")], ids=["status", "connection"]
)
def test_an_api_that_is_away_when_the_pod_has_ended_is_no_failure_of_the_step(
    cluster: Cluster, told: list[str], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Record it and try again, however often: the next try finds the pod."""

    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(KubernetesPodOperator, "trigger_reentry", fail)
    operator, store = step_task(ENCODE_CONDITIONS), Store()
    for _ in range(OWN_FAILURES + 2):
        with pytest.raises(AirflowException, match="The Kubernetes API did not answer") as seen:
            operator.trigger_reentry(context(store, operator), {})
        assert not isinstance(seen.value, AirflowFailException)
        assert seen.value.__cause__ is error
    assert len(told) == OWN_FAILURES + 2


def test_a_pod_may_be_taken_away_ten_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Try a heavy step again more often than it may fail: spot nodes come and go."""
    monkeypatch.setenv("S2V_RETRY_SECONDS", "1")
    for execution, retries in (("kubernetes", 10), ("local", 2)):
        monkeypatch.setenv("S2V_EXECUTION", execution)
        load_settings.cache_clear()
        assert [step_task(step).retries for step in (ENCODE_CONDITIONS, RENDER_CLIP)] == [retries] * 2
        assert step_task(STITCH).retries == 2


def test_what_the_cluster_did_is_not_counted_among_failures_of_the_step(cluster: Cluster, told: list[str]) -> None:
    """A quota in between neither uses a try up nor gives one back."""
    store, seen = Store(), []
    own, of_the_cluster = (403, "pods is forbidden: cannot create"), (403, QUOTA)
    for refusal in (of_the_cluster, own, of_the_cluster, own, of_the_cluster, own):
        cluster.refusal = refusal
        with pytest.raises(AirflowException) as raised:
            execute(store)
        seen.append(type(raised.value))
    assert seen == [AirflowException] * 5 + [AirflowFailException]


def test_the_next_try_does_not_attach_to_the_pod_of_a_dead_node(cluster: Cluster, told: list[str]) -> None:
    """It cannot be ended, so nobody waits for that; the step has not failed, and begins in another pod."""
    store = Store()
    with pytest.raises(TaskDeferred):
        execute(store)
    ((name, pod),) = cluster.pods.items()
    pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    pod["status"] = {"phase": "Running"}
    event = {"status": "timeout", "name": name, "namespace": "s2v", "message": "its node does not answer any more."}
    operator = step_task(ENCODE_CONDITIONS)
    with pytest.raises(AirflowException, match=f"Pod {name} was deleted") as seen:
        operator.trigger_reentry(context(store, operator), event)
    assert not isinstance(seen.value, AirflowFailException)
    assert len(told) == 1
    with pytest.raises(TaskDeferred):
        execute(store)
    assert len(cluster.pods) == 2


@pytest.fixture
def close_job() -> CloseJobOfPodsOperator:
    with DAG("speech_to_video", schedule=None):
        operator = step_task(CLOSE_JOB)
    assert isinstance(operator, CloseJobOfPodsOperator)
    return operator


def test_close_job_deletes_what_a_run_has_left_once(cluster: Cluster, close_job: CloseJobOfPodsOperator) -> None:
    """Pods of other runs and of other DAGs stay; asked twice, a kubelet can tell a minute late that a pod is gone."""
    run_ids = ["manual__2026-11-22T10:15:30+00:00", "manual__2026-11-22T10:15:31+00:00", "my-job"]
    for run_id in run_ids:
        with pytest.raises(TaskDeferred):
            execute(Store(), run_id)
    own, other, third = cluster.pods.values()
    stranger = {"metadata": {"name": "stranger", "labels": own["metadata"]["labels"] | {"dag_id": "other"}}}
    ending = {"metadata": own["metadata"] | {"name": "ending", "deletionTimestamp": "2026-01-01T00:00:00Z"}}
    cluster.left = [other, stranger, own, ending, third]
    close_job._delete_pods({"run_id": run_ids[0]})
    assert set(cluster.deleted) == {own["metadata"]["name"]}


def test_a_pod_that_is_gone_meanwhile_does_not_fail_the_job(
    cluster: Cluster, close_job: CloseJobOfPodsOperator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others are deleted all the same."""
    with pytest.raises(TaskDeferred):
        execute(Store())
    (pod,) = cluster.pods.values()
    gone = {"metadata": pod["metadata"] | {"name": "gone"}}
    cluster.left, cluster.missing = [gone, pod], {"gone"}
    close_job._delete_pods({"run_id": "manual__1"})
    assert cluster.deleted == [pod["metadata"]["name"]]


@pytest.mark.parametrize("status", ["succeeded", "failed"])
def test_what_is_left_is_deleted_however_the_job_ended(
    cluster: Cluster, close_job: CloseJobOfPodsOperator, monkeypatch: pytest.MonkeyPatch, status: str
) -> None:
    """A job that failed has pods to look for more than any other; its reason stays the outcome."""
    with pytest.raises(TaskDeferred):
        execute(Store())
    cluster.left = list(cluster.pods.values())
    script = f"import json; print(json.dumps({{'job_id': 'my-job', 'status': '{status}', 'reason': 'size 9*9.'}}))"
    monkeypatch.setattr(close_job, "command", lambda _: [sys.executable, "-c", script])
    if status == "failed":
        with pytest.raises(AirflowFailException, match=r"Job my-job failed: size 9\*9\."):
            close_job.execute(context(Store(), close_job))  # type: ignore[arg-type]
    else:
        close_job.execute(context(Store(), close_job))  # type: ignore[arg-type]
    assert len(cluster.deleted) == 1
