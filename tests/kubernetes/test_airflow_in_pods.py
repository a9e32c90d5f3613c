"""Check Airflow itself in pods, with a worker pod for each task, as `config/airflow/values.yaml` installs it."""

from collections.abc import Callable, Iterator

import pytest

from s2v_tasks.embedded.stack import Services
from s2v_tasks.metadata.tables import Job
from tests.kubernetes.cluster import Cluster
from tests.kubernetes.images import import_image
from tests.kubernetes.release import RELEASE, Release

pytestmark = [pytest.mark.kubernetes, pytest.mark.timeout(5000, func_only=True)]


@pytest.fixture
def release(kubeconfig: str, installed: tuple[Services, Cluster], values: dict[str, str]) -> Iterator[Release]:
    """Airflow in the cluster; it ends with the test."""
    services, cluster = installed
    database_url = services.postgres.ensure_database("airflow_in_pods")
    release = Release(cluster, import_image(kubeconfig, "airflow"), values, database_url)
    release.install()
    yield release
    release.uninstall()


def test_worker_pods_make_the_video_of_this_machine(
    release: Release, installed: tuple[Services, Cluster], job: Callable[[str], Job], render_here: Callable[..., None]
) -> None:
    """The job survives a full quota and the loss of a worker pod and of the scheduler; its logs are in S3."""
    airflow, cluster, job_id = release.admin, installed[1], "airflow-in-pods"
    quota = {"kind": "ResourceQuota", "apiVersion": "v1", "metadata": {"name": "full", "namespace": RELEASE}}
    cluster.admin("apply", "--filename", "-", documents=[quota | {"spec": {"hard": {"pods": str(release.num_pods)}}}])
    run = airflow.trigger(job_id=job_id)
    airflow.wait(lambda: release.log_of_scheduler().count("exceeded quota") > 1)
    assert airflow.task(run, "stage_inputs")["state"] == "queued"
    cluster.admin("delete", "--namespace", RELEASE, "resourcequota/full")

    (worker,) = airflow.wait(lambda: release.workers("stage_inputs"))
    cluster.core.delete_namespaced_pod(worker, RELEASE, grace_period_seconds=0)
    airflow.wait(lambda: cluster.rendering(job_id, 0))
    cluster.core.delete_collection_namespaced_pod(RELEASE, label_selector="component=scheduler")

    assert airflow.outcome(run) == "success", job(job_id).reason
    # The quota refused its worker twice, which used up no try. The lost worker used up one if its task had begun.
    assert airflow.task(run, "stage_inputs")["try_number"] <= 2
    assert {clip.attempts for clip in job(job_id).clips} == {1}
    for task in ("encode_conditions", "stitch"):  # the triggerer, which ends the first, stores its log, too
        assert "step_finished" in airflow.log(run, task)
    assert cluster.pods(job_id) == []
    render_here("beside-airflow-in-pods")
    assert job(job_id).sha256 == job("beside-airflow-in-pods").sha256
