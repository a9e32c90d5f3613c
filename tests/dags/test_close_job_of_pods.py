"""Check that pods that a run has left behind are deleted when its job is closed."""

import sys

import pytest
from airflow.providers.cncf.kubernetes.pod_generator import make_safe_label_value
from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowFailException, TaskDeferred

from s2v_tasks.orchestration.pods import CloseJobOfPodsOperator
from s2v_tasks.orchestration.step_operators import step_task
from s2v_tasks.schemas.steps import CLOSE_JOB
from tests.dags import kubernetes_api
from tests.dags.kubernetes_api import Cluster, Store, context, execute

# Fixtures of these tests.
cluster = kubernetes_api.cluster


@pytest.fixture
def close_job() -> CloseJobOfPodsOperator:
    with DAG("speech_to_video", schedule=None):
        operator = step_task(CLOSE_JOB)
    assert isinstance(operator, CloseJobOfPodsOperator)
    return operator


def test_close_job_deletes_what_a_run_has_left_once(cluster: Cluster, close_job: CloseJobOfPodsOperator) -> None:
    """Pods of the run are deleted once, even if the API still lists one; pods of other runs and DAGs stay."""
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


def test_a_run_with_a_similar_id_deletes_no_pod_of_another_run(
    cluster: Cluster, close_job: CloseJobOfPodsOperator
) -> None:
    """People choose run ids. One that equals the label `run_id` of another run selects no pod of that run."""
    with pytest.raises(TaskDeferred):
        execute(Store(), "manual__2026-11-22T10:15:30+00:00")
    (pod,) = cluster.left = list(cluster.pods.values())
    similar = pod["metadata"]["labels"]["run_id"]
    assert make_safe_label_value(similar) == similar
    close_job._delete_pods({"run_id": similar})
    assert not cluster.deleted


def test_a_pod_that_is_gone_meanwhile_does_not_fail_the_job(
    cluster: Cluster, close_job: CloseJobOfPodsOperator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pod that disappears before its deletion is no error, and the other pods are deleted."""
    with pytest.raises(TaskDeferred):
        execute(Store())
    (pod,) = cluster.pods.values()
    gone = {"metadata": pod["metadata"] | {"name": "gone"}}
    cluster.left, cluster.missing = [gone, pod], {"gone"}
    close_job._delete_pods({"run_id": "manual__1"})
    assert cluster.deleted == [pod["metadata"]["name"]]


@pytest.mark.parametrize("status", ["succeeded", "failed"])
def test_pods_are_deleted_for_any_end_of_the_job(
    cluster: Cluster, close_job: CloseJobOfPodsOperator, monkeypatch: pytest.MonkeyPatch, status: str
) -> None:
    """The pods of a failed job are deleted, too, and its reason stays the outcome."""
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
