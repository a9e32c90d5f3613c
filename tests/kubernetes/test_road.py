"""The whole road with a pod for every clip: the same bytes as on this machine."""

from collections.abc import Callable
from typing import Any

import pytest

from s2v_tasks.metadata.records import JobRecord
from tests.kubernetes.cluster import Cluster
from tests.kubernetes.serving import Airflow

pytestmark = [pytest.mark.kubernetes, pytest.mark.timeout(1500)]
Look = Callable[[str], JobRecord]


def test_a_video_from_pods_is_the_one_that_this_machine_makes(
    airflow: Airflow, cluster: Cluster, job: Look, render_here: Callable[..., None]
) -> None:
    """Byte for byte; each clip had a pod of its own, and none of them is left."""
    run = airflow.trigger(job_id="in-pods")
    seen: set[str] = set()

    def ended() -> str | None:
        seen.update(pod.metadata.labels.get("s2v/clip-index", "conditions") for pod in cluster.pods("in-pods"))
        return airflow.ended(run)

    assert airflow.wait(ended, 900) == "success", job("in-pods").reason
    assert seen == {"conditions", "0", "1", "2"}
    assert cluster.pods("in-pods") == []
    render_here("at-home")
    assert job("in-pods").sha256 == job("at-home").sha256


# The speech pauses after frame 90: two chains of two clips.
TWO_CHAINS: dict[str, Any] = {
    "num_clip": None, "infer_frames": 48, "sample_steps": 6, "continuity": "cut", "min_chain_seconds": 3,
    "max_chain_seconds": 6, "clips_per_pod": 2,
}  # fmt: skip


def test_chains_render_side_by_side_each_pod_two_clips(
    airflow: Airflow, cluster: Cluster, job: Look, render_here: Callable[..., None]
) -> None:
    """Two chains at the same time; a pod's first clip is finished before its second; the video is the local one."""
    run, job_id = airflow.trigger(job_id="cut-in-pods", **TWO_CHAINS), "cut-in-pods"
    at_once: set[frozenset[str]] = set()
    progress: set[tuple[str, ...]] = set()

    def ended() -> str | None:
        pods = [pod for pod in cluster.pods(job_id) if "s2v/clip-index" in pod.metadata.labels]
        at_once.add(frozenset(p.metadata.labels["s2v/clip-index"] for p in pods if p.status.phase == "Running"))
        if pods:
            progress.add(tuple(clip.status for clip in job(job_id).clips))
        return airflow.ended(run)

    assert airflow.wait(ended, 900) == "success", job(job_id).reason
    print(f"pods at once {sorted(map(sorted, at_once))}, clips {sorted(progress)}")
    assert max(at_once, key=len) == {"0", "2"}
    assert set.union(*map(set, at_once)) == {"0", "2"}
    assert any(clips[:2] == ("succeeded", "rendering") for clips in progress)
    assert [clip.attempts for clip in job(job_id).clips] == [1, 1, 1, 1]
    render_here("cut-at-home", **TWO_CHAINS)
    assert job(job_id).sha256 == job("cut-at-home").sha256
