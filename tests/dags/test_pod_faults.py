"""Check the operator with a cluster that refuses a pod or loses its node, simulated by an API server over HTTP."""

from typing import Any

import pytest
from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
from airflow.sdk.exceptions import AirflowException, AirflowFailException, TaskDeferred
from kubernetes.client import ApiException
from urllib3.exceptions import HTTPError

from s2v_tasks.orchestration.retry_policy import OWN_FAILURES
from s2v_tasks.orchestration.step_operators import step_task
from s2v_tasks.schemas.steps import ENCODE_CONDITIONS, RENDER_CLIP, STITCH
from s2v_tasks.settings import load_settings
from tests.dags import kubernetes_api
from tests.dags.kubernetes_api import QUOTA, Cluster, Store, context, execute

# Fixtures of these tests.
cluster, recorded = kubernetes_api.cluster, kubernetes_api.recorded


def test_a_used_up_quota_is_waited_for(cluster: Cluster, recorded: list[str]) -> None:
    """A used-up quota is no failure of the step: each try records it, and the first try with room gets its pod."""
    store = Store()
    cluster.refusal = (403, QUOTA)
    for _ in range(OWN_FAILURES + 2):
        with pytest.raises(AirflowException, match=r"exceeded quota: gpus, .*limited: ") as seen:
            execute(store)
        assert not isinstance(seen.value, AirflowFailException)
    assert recorded == [f"The pod was refused (403): {QUOTA}"] * (OWN_FAILURES + 2)
    cluster.refusal = None
    with pytest.raises(TaskDeferred):
        execute(store)
    assert len(cluster.pods) == 1


def test_a_repeated_refusal_is_final(cluster: Cluster, recorded: list[str]) -> None:
    """A refusal for missing rights or Pod Security is final after a few tries."""
    store = Store()
    cluster.refusal = (403, 'pods is forbidden: User "system:serviceaccount:airflow:airflow-worker" cannot create')
    for _ in range(OWN_FAILURES):
        with pytest.raises(AirflowException, match="cannot create") as seen:
            execute(store)
        assert not isinstance(seen.value, AirflowFailException)
    with pytest.raises(AirflowFailException, match="cannot create"):
        execute(store)


def test_a_person_who_clears_the_task_gives_it_all_its_tries_again(cluster: Cluster, recorded: list[str]) -> None:
    """After a person has cleared the task, which raises `max_tries`, failures are counted from zero."""
    store = Store()
    cluster.refusal = (403, "pods is forbidden: cannot create")
    for max_tries in (10, 13, 24):
        seen = []
        for _ in range(OWN_FAILURES + 1):
            with pytest.raises(AirflowException, match="cannot create") as raised:
                execute(store, max_tries=max_tries)
            seen.append(type(raised.value))
        assert seen == [AirflowException] * OWN_FAILURES + [AirflowFailException]


def test_an_invalid_image_name_is_final_at_once(cluster: Cluster, recorded: list[str]) -> None:
    """An invalid image name fails without a retry; the reason quotes the cluster and is recorded."""
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
    assert len(recorded) == 1


@pytest.mark.parametrize(
    "error", [ApiException(503, "Service Unavailable"), HTTPError("Connection refused")], ids=["status", "connection"]
)
def test_an_api_that_is_away_when_the_pod_has_ended_is_no_failure_of_the_step(
    cluster: Cluster, recorded: list[str], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """An API that does not answer is recorded and never counted as a failure: the next try finds the pod."""

    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(KubernetesPodOperator, "trigger_reentry", fail)
    operator, store = step_task(ENCODE_CONDITIONS), Store()
    for _ in range(OWN_FAILURES + 2):
        with pytest.raises(AirflowException, match="The Kubernetes API did not answer") as seen:
            operator.trigger_reentry(context(store, operator), {})
        assert not isinstance(seen.value, AirflowFailException)
        assert seen.value.__cause__ is error
    assert len(recorded) == OWN_FAILURES + 2


def test_a_pod_may_be_preempted_ten_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Heavy steps have more tries for preempted pods than for failures of their own."""
    monkeypatch.setenv("S2V_RETRY_SECONDS", "1")
    for execution, retries in (("kubernetes", 10), ("local", 2)):
        monkeypatch.setenv("S2V_EXECUTION", execution)
        load_settings.cache_clear()
        assert [step_task(step).retries for step in (ENCODE_CONDITIONS, RENDER_CLIP)] == [retries] * 2
        assert step_task(STITCH).retries == 2


def test_failures_of_the_cluster_are_not_counted_as_failures_of_the_step(cluster: Cluster, recorded: list[str]) -> None:
    """A used-up quota between failures of the step neither counts as one nor resets their number."""
    store, seen = Store(), []
    own, of_the_cluster = (403, "pods is forbidden: cannot create"), (403, QUOTA)
    for refusal in (of_the_cluster, own, of_the_cluster, own, of_the_cluster, own):
        cluster.refusal = refusal
        with pytest.raises(AirflowException) as raised:
            execute(store)
        seen.append(type(raised.value))
    assert seen == [AirflowException] * 5 + [AirflowFailException]


def test_the_next_try_does_not_attach_to_the_pod_of_a_dead_node(cluster: Cluster, recorded: list[str]) -> None:
    """The next try makes another pod, does not wait for the lost one, and counts no failure of the step."""
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
    assert len(recorded) == 1
    with pytest.raises(TaskDeferred):
        execute(store)
    assert len(cluster.pods) == 2
