"""Check failures of pods and of Airflow: the job recovers without rendering a finished clip again, or reports why."""

import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from s2v_tasks.metadata.tables import Job
from tests.kubernetes.cluster import Cluster
from tests.kubernetes.holding import Hold
from tests.kubernetes.serving import LONG, Airflow, EmbeddedAirflow

pytestmark = [pytest.mark.kubernetes, pytest.mark.timeout(5000, func_only=True)]
Look = Callable[[str], Job]


def failures(record: Job) -> str:
    return "\n".join(str(event.detail["error"]) for event in record.events if event.event == "step_failed")


def processes(*words: str) -> list[int]:
    """Return the processes of this machine, containers included, whose command line has all `words`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if all(word in line for word in words) and int(path.parent.name) != os.getpid():
            found.append(int(path.parent.name))
    return found


def test_a_job_survives_a_fault_in_each_clip(
    airflow: EmbeddedAirflow, cluster: Cluster, job: Look, hold: Hold, apiserver: int
) -> None:
    """Each clip has another fault in its middle; all are finished, and no finished clip is rendered again.

    Also the clip that is killed without a warning continues at a saved state.
    """
    job_id = "chaos"
    cluster.change_template("render-clip", lambda _, box: box["env"].append({"name": "SAVE_SECONDS", "value": "0"}))
    hold.at(job_id, 0, 1, 2, 3)
    run = airflow.trigger(job_id=job_id, num_clip=4, **LONG)

    deleted = hold.reached(run, job_id, 0).metadata
    cluster.core.delete_namespaced_pod(deleted.name, deleted.namespace)  # SIGTERM ends the hold

    hold.reached(run, job_id, 1)
    for pid in processes("render-clip", job_id):
        os.kill(pid, signal.SIGKILL)
    hold.release(job_id, 1)

    hold.reached(run, job_id, 2)
    airflow.kill("triggerer")
    airflow.revive()
    hold.release(job_id, 2)

    hold.reached(run, job_id, 3)
    os.kill(apiserver, signal.SIGSTOP)
    time.sleep(20)
    os.kill(apiserver, signal.SIGCONT)
    hold.release(job_id, 3)

    assert airflow.outcome(run) == "success", job(job_id).reason
    record = job(job_id)
    said = {index: airflow.log(run, "clip.render", index) for index in range(4)}
    tries = [airflow.task(run, "clip.render", index)["try_number"] for index in range(4)]
    print(f"attempts {[clip.attempts for clip in record.clips]}, tries {tries}")
    # Deleted and killed clips are begun twice; what befell only those who watch costs no clip anything.
    assert [clip.attempts for clip in record.clips] == [2, 2, 1, 1]
    assert "clip 0 was interrupted after solver step" in failures(record)
    assert re.search("was interrupted after solver step|The pod is gone|Pod .* was deleted", said[0])
    assert "was killed (SIGKILL)" in failures(record)
    assert "was killed (SIGKILL)" in said[1]
    continued = [index for index in range(4) if re.search("continues after solver step [23] of", said[index])]
    assert continued == [0, 1]
    assert cluster.pods(job_id) == []


def test_the_next_try_attaches_to_the_pod_of_a_lost_worker(
    airflow: Airflow, cluster: Cluster, job: Look, hold: Hold
) -> None:
    """A worker is killed between making a pod and deferring: the next try uses that pod and its attempt."""
    job_id = "lost-worker"
    hold.at(job_id, 0)
    hold.worker_at(job_id, 0)
    run = airflow.trigger(job_id=job_id, num_clip=1, **LONG)
    name = hold.worker_reached(job_id, 0).metadata.name
    task = airflow.task(run, "clip.render", 0)
    assert task["state"] == "running"
    for pid in processes("airflow worker", task["id"]):
        os.kill(pid, signal.SIGKILL)
    hold.release_worker(job_id, 0)
    killed = time.monotonic()
    airflow.wait(lambda: airflow.task(run, "clip.render", 0)["try_number"] == 2)
    airflow.wait(lambda: airflow.task(run, "clip.render", 0)["state"] == "deferred")
    print(f"the second try waits for the pod {time.monotonic() - killed:.0f} s after the worker was killed")
    assert cluster.rendering(job_id, 0).metadata.name == name
    assert len(cluster.pods(job_id)) == 1
    hold.release(job_id, 0)
    assert airflow.outcome(run) == "success", job(job_id).reason
    assert f"Found matching pod {name}" in airflow.log(run, "clip.render", 0)
    assert airflow.task(run, "clip.render", 0)["try_number"] == 2
    assert [clip.attempts for clip in job(job_id).clips] == [1]
    assert failures(job(job_id)) == ""


@pytest.mark.parametrize(
    ("job_id", "change", "reason", "tries"),
    [
        ("no-memory", lambda _, box: box["resources"]["limits"].update(memory="300Mi"), "ran out of memory", 1),
        ("no-image", lambda _, box: box.update(image="registry.invalid/none:1"), "cannot be pulled", 3),
        ("no-node", lambda spec, _: spec.update(nodeSelector={"gpu": "none"}), "No node took pod", 1),
    ],
)
def test_a_pod_that_cannot_work_fails_with_the_reason(
    airflow: Airflow, cluster: Cluster, job: Look, job_id: str, change: Any, reason: str, tries: int
) -> None:
    """Out of memory, a missing image and a missing node are in log and PostgreSQL; the next clip never starts."""
    cluster.change_template("render-clip", change)
    if job_id == "no-memory":
        cluster.change_template("render-clip", lambda _, box: box["resources"]["requests"].update(memory="300Mi"))
    run = airflow.trigger(job_id=job_id, num_clip=2)
    assert airflow.outcome(run) == "failed"
    assert reason in (job(job_id).reason or "")
    assert reason in airflow.log(run, "clip.render", 0)
    # Airflow counts a try also where it failed a task itself, before the pod could be judged.
    assert len([event for event in job(job_id).events if event.event == "step_failed"]) == tries
    assert [clip.attempts for clip in job(job_id).clips][1] == 0
    assert "cannot start: clip 1, which it continues, is failed" in airflow.log(run, "clip.wait", 1)
    airflow.wait(lambda: cluster.pods(job_id) == [])  # a kubelet takes its time to end a pod without an image
