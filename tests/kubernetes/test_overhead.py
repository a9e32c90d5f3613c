"""Check the measured time between two clips: with a pod for each clip, and in one pod."""

import json
from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime
from statistics import mean
from typing import Any

import pytest

from s2v_tasks.capacity.benchmark_report import links, mean_link, render_moments, seconds_inside
from s2v_tasks.capacity.recording import FOLDER
from s2v_tasks.metadata.tables import Job
from tests.kubernetes.cluster import REPOSITORY, Cluster
from tests.kubernetes.serving import LONGEST_SECONDS, Airflow

pytestmark = [pytest.mark.kubernetes, pytest.mark.timeout(5000, func_only=True)]
REPORT = REPOSITORY / "out" / "kubernetes" / "overhead.json"


def test_a_pod_of_several_clips_saves_the_start_of_each(
    airflow: Airflow, cluster: Cluster, job: Callable[[str], Job]
) -> None:
    """Clips in one pod follow each other sooner than clips in pods of their own, and the report has all parts."""
    cluster.change_template("render-clip", lambda _, box: box["env"].append({"name": FOLDER, "value": "/mnt/hold"}))
    between, pods = _between_pods(airflow, cluster, job)
    assert airflow.outcome(airflow.trigger(job_id="one-pod", clips_per_pod=3, base_seed=8)) == "success"
    inside = seconds_inside(_attempts(job("one-pod")), dict(_moments(cluster, "one-pod")))

    assert len(inside) == 2
    assert between["seconds"] == pytest.approx(sum(value for name, value in between.items() if name != "seconds"))
    assert max(inside) < between["seconds"]
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    report = {"between_pods": between, "pod_start_seconds": pods, "inside_a_pod_seconds": round(mean(inside), 2)}
    REPORT.write_text(json.dumps(report, indent=2) + "\n")
    print(REPORT.read_text())


def _between_pods(airflow: Airflow, cluster: Cluster, job: Callable[[str], Job]) -> tuple[dict[str, float], float]:
    """Return the mean of each part between two clips, and the seconds from creation to process start of a pod."""
    created: dict[int, datetime] = {}
    run = airflow.trigger(job_id="pod-for-each")

    def ended() -> str | None:
        for pod in cluster.pods("pod-for-each"):
            if index := pod.metadata.labels.get("s2v/clip-index"):
                created[int(index)] = pod.metadata.creation_timestamp
        return airflow.ended(run)

    assert airflow.wait(ended, LONGEST_SECONDS) == "success", job("pod-for-each").reason
    moments = dict(_moments(cluster, "pod-for-each"))
    assert set(moments) == set(created) == {0, 1, 2}
    link = mean_link(list(links(_attempts(job("pod-for-each")), _tasks(airflow, run), moments)))
    assert link is not None
    starts = [moments[index]["created"] - created[index].timestamp() for index in moments]
    return asdict(link) | {"seconds": link.seconds}, round(mean(starts), 1)


def _moments(cluster: Cluster, job_id: str) -> Any:
    lines = (cluster.hold_folder / "steps.jsonl").read_text().splitlines()
    return render_moments(map(json.loads, lines), job_id)


def _attempts(record: Job) -> dict[int, tuple[float, float]]:
    return {
        attempt.clip_index: (attempt.started_at.timestamp(), attempt.finished_at.timestamp())
        for attempt in record.attempts
        if attempt.clip_index is not None and attempt.finished_at is not None
    }


def _tasks(airflow: Airflow, run: str) -> list[dict[str, Any]]:
    """Return the task instances of a run with their moments as times."""
    moments = ("start_date", "end_date")
    return [
        task | {name: datetime.fromisoformat(task[name]) for name in moments if task[name]}
        for task in airflow.tasks(run)
    ]
