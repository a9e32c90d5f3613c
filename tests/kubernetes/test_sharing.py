"""Check jobs that wait for the same GPU."""

from datetime import datetime
from itertools import pairwise
from typing import Any

import pytest

from tests.kubernetes.cluster import NUM_GPUS, Cluster
from tests.kubernetes.holding import Hold
from tests.kubernetes.serving import LONG, LONGEST_SECONDS, Airflow

pytestmark = [pytest.mark.kubernetes, pytest.mark.timeout(5000, func_only=True)]


def test_two_jobs_share_one_gpu_in_order(airflow: Airflow, cluster: Cluster, hold: Hold) -> None:
    """With one slot the higher priority renders first, one pod at a time, clips in order, without a waiting worker."""
    airflow.slots(0)
    hold.at("one-gpu-high", 0)
    runs = {name: airflow.trigger(job_id=f"one-gpu-{name}", priority=name, **LONG) for name in ("low", "high")}
    most_pods = most_deferred = most_workers = looks = 0

    def both_wait() -> bool:
        return all(airflow.task(run, "encode_conditions")["state"] == "scheduled" for run in runs.values())

    def all_ended() -> bool:
        nonlocal most_pods, most_deferred, most_workers, looks
        states = [task["state"] for run in runs.values() for task in airflow.tasks(run)]
        pods = [p for name in runs for p in cluster.pods(f"one-gpu-{name}") if p.status.phase in {"Pending", "Running"}]
        most_pods, looks = max(most_pods, len(pods)), looks + 1
        most_deferred = max(most_deferred, states.count("deferred"))
        most_workers = max(most_workers, states.count("running"))
        return all(airflow.ended(run) for run in runs.values())

    try:
        airflow.wait(both_wait)
        airflow.slots(1)
        hold.reached(runs["high"], "one-gpu-high", 0)
        airflow.wait(lambda: all_ended() or most_deferred > 1)  # the waits of the clips behind it
        hold.release("one-gpu-high", 0)
        airflow.wait(all_ended, LONGEST_SECONDS)
    finally:
        airflow.slots(NUM_GPUS)
    print(f"looks {looks}, pods at once {most_pods}, tasks deferred {most_deferred}, workers busy {most_workers}")
    assert {airflow.ended(run) for run in runs.values()} == {"success"}
    assert most_pods == 1
    assert most_deferred > 1
    first, second = (moment(airflow.task(runs[name], "encode_conditions"), "start_date") for name in ("high", "low"))
    assert first < second
    for run in runs.values():
        clips = [airflow.task(run, "clip.render", index) for index in range(3)]
        for before, after in pairwise(clips):
            assert moment(before, "end_date") <= moment(after, "start_date")


def moment(task: dict[str, Any], name: str) -> datetime:
    return datetime.fromisoformat(task[name])
