"""Check the whole pipeline with a pod for each clip: the video has the same bytes as on this machine."""

from collections.abc import Callable
from typing import Any

import pytest

from s2v_tasks.metadata.tables import Job
from tests.kubernetes.cluster import Cluster
from tests.kubernetes.holding import Hold
from tests.kubernetes.serving import LONGEST_SECONDS, Airflow

pytestmark = [pytest.mark.kubernetes, pytest.mark.timeout(5000, func_only=True)]
Look = Callable[[str], Job]


def test_a_video_from_pods_is_the_one_that_this_machine_makes(
    airflow: Airflow, cluster: Cluster, job: Look, render_here: Callable[..., None]
) -> None:
    """The video is equal byte for byte; each clip had a pod of its own, whose node is recorded, and no pod is left."""
    run = airflow.trigger(job_id="in-pods")
    seen: set[str] = set()

    def ended() -> str | None:
        seen.update(pod.metadata.labels.get("s2v/clip-index", "conditions") for pod in cluster.pods("in-pods"))
        return airflow.ended(run)

    assert airflow.wait(ended, LONGEST_SECONDS) == "success", job("in-pods").reason
    assert seen == {"conditions", "0", "1", "2"}
    assert cluster.pods("in-pods") == []
    assert {attempt.node for attempt in job("in-pods").attempts} == {cluster.node}
    render_here("at-home")
    assert job("in-pods").sha256 == job("at-home").sha256


# The speech pauses after frame 90: two chains of two clips.
TWO_CHAINS: dict[str, Any] = {
    "num_clip": None, "infer_frames": 48, "sample_steps": 6, "continuity": "cut", "min_chain_seconds": 3,
    "max_chain_seconds": 6, "clips_per_pod": 2,
}  # fmt: skip


def test_chains_render_side_by_side_each_pod_two_clips(
    airflow: Airflow, cluster: Cluster, job: Look, hold: Hold, render_here: Callable[..., None]
) -> None:
    """Two chains render at the same time in pods of two clips each; the video equals the local one."""
    job_id = "cut-in-pods"
    hold.at(job_id, 0, 1, 2)
    run = airflow.trigger(job_id=job_id, **TWO_CHAINS)

    first, third = hold.reached(run, job_id, 0), hold.reached(run, job_id, 2)
    assert [clip.status for clip in job(job_id).clips] == ["rendering", "pending", "rendering", "pending"]
    assert first.metadata.name != third.metadata.name
    hold.release(job_id, 0, 2)

    second = hold.reached(run, job_id, 1, pod_of_clip=0)
    assert second.metadata.name == first.metadata.name
    assert [clip.status for clip in job(job_id).clips][:2] == ["succeeded", "rendering"]
    hold.release(job_id, 1)

    assert airflow.outcome(run) == "success", job(job_id).reason
    assert [clip.attempts for clip in job(job_id).clips] == [1, 1, 1, 1]
    render_here("cut-at-home", **TWO_CHAINS)
    assert job(job_id).sha256 == job("cut-at-home").sha256
