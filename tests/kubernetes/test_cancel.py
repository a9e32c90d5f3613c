"""Check the end of jobs whose clips render in pods."""

import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from s2v_tasks.metadata.tables import Job
from tests.kubernetes.cluster import Cluster
from tests.kubernetes.holding import Hold
from tests.kubernetes.serving import LONG, Airflow

pytestmark = [pytest.mark.kubernetes, pytest.mark.timeout(5000, func_only=True)]


def test_a_job_that_is_ended_frees_its_gpu_and_keeps_its_clips(
    airflow: Airflow, cluster: Cluster, job: Callable[[str], Job], hold: Hold
) -> None:
    """`s2v cancel`, or marking the run failed, ends the pod long before its deadline; clips are rendered once."""
    job_id, fields = "ended", {"job_id": "ended", "num_clip": 2, **LONG}

    def await_end_of_pod(how: str) -> None:
        asked = time.monotonic()
        airflow.wait(lambda: cluster.pods(job_id) == [])
        print(f"no pod {time.monotonic() - asked:.1f} s after {how}")

    hold.at(job_id, 1)
    run = airflow.trigger(**fields)
    hold.reached(run, job_id, 1)
    command = subprocess.Popen([sys.executable, "-m", "s2v_tasks.cli", "cancel", job_id])
    await_end_of_pod("s2v cancel")
    assert command.wait(60) == 0
    assert airflow.outcome(run) == "failed"
    record = job(job_id)
    assert (record.status, record.exit_code) == ("cancelled", 130)
    assert "1 of 2 clips are finished" in (record.reason or "")
    assert [clip.status for clip in record.clips] == ["succeeded", "pending"]

    hold.at(job_id, 1)
    again = airflow.trigger(**fields)
    hold.reached(again, job_id, 1)
    airflow.call(again, {"state": "failed"}, "PATCH")
    await_end_of_pod("the run was marked failed")
    assert airflow.outcome(again) == "failed"
    assert job(job_id).status == "failed"
    finished = job(job_id).clips[0]
    assert (finished.status, finished.attempts, finished.reused) == ("succeeded", 1, True)
