"""The whole road with a pod for every clip: the same bytes as on this machine, and GPUs in turn."""

from collections.abc import Callable
from datetime import datetime
from itertools import pairwise
from typing import Any

import pytest

from s2v_tasks.metadata.records import JobRecord

pytestmark = [pytest.mark.kubernetes, pytest.mark.timeout(1500)]


def test_a_video_from_pods_is_the_one_that_this_machine_makes(
    airflow: Any, cluster: Any, job: Callable[[str], JobRecord], render_here: Callable[[str], None]
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


def test_two_jobs_share_one_gpu_in_order(airflow: Any, cluster: Any) -> None:
    """One slot: never two pods at once, each chain in its order; the waiting holds no worker."""
    airflow.call("/pools/gpu", {"name": "gpu", "slots": 1, "include_deferred": True}, "PATCH")
    runs = {name: airflow.trigger(job_id=name) for name in ("one-gpu-a", "one-gpu-b")}
    most_pods = most_deferred = most_workers = looks = 0

    def all_ended() -> bool:
        nonlocal most_pods, most_deferred, most_workers, looks
        states = [task["state"] for run in runs.values() for task in airflow.tasks(run)]
        pods = [pod for name in runs for pod in cluster.pods(name) if pod.status.phase in {"Pending", "Running"}]
        most_pods, looks = max(most_pods, len(pods)), looks + 1
        most_deferred = max(most_deferred, states.count("deferred"))
        most_workers = max(most_workers, states.count("running"))
        return all(airflow.ended(run) for run in runs.values())

    try:
        airflow.wait(all_ended, 1200)
    finally:
        airflow.call("/pools/gpu", {"name": "gpu", "slots": 2, "include_deferred": True}, "PATCH")
    print(f"looks {looks}, pods at once {most_pods}, tasks deferred {most_deferred}, workers busy {most_workers}")
    assert {airflow.ended(run) for run in runs.values()} == {"success"}
    assert most_pods == 1
    assert most_deferred > 1
    for run in runs.values():
        clips = [airflow.task(run, "clip.render", index) for index in range(3)]
        for before, after in pairwise(clips):
            assert moment(before, "end_date") <= moment(after, "start_date")


def moment(task: dict[str, Any], name: str) -> datetime:
    return datetime.fromisoformat(task[name])
