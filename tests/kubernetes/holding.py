"""Hold a render at a solver step until a test releases it, on a machine of any speed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from s2v_tasks.metadata.tables import Job
from tests.kubernetes.cluster import Cluster
from tests.kubernetes.serving import LONGEST_SECONDS, Airflow


class Hold:
    """Renders that wait after a solver step until they are released: see hold/sitecustomize.py."""

    def __init__(self, airflow: Airflow, cluster: Cluster, job: Callable[[str], Job]) -> None:
        self._airflow, self._cluster, self._job = airflow, cluster, job

    def at(self, job_id: str, *clip_indices: int) -> None:
        """Let these clips wait at the step; call this before they are started."""
        for index in clip_indices:
            self._path(job_id, index, "reached").unlink(missing_ok=True)
            self._path(job_id, index, "hold").touch()

    def reached(self, run: str, job_id: str, clip_index: int, *, pod_of_clip: int | None = None) -> Any:
        """Return the pod that renders the clip once the clip waits at the step.

        pod_of_clip: the first clip of the pod, if that is another.
        """
        labelled = clip_index if pod_of_clip is None else pod_of_clip

        def pod() -> Any:
            assert self._airflow.ended(run) is None, self._job(job_id).reason
            return self._path(job_id, clip_index, "reached").exists() and self._cluster.rendering(job_id, labelled)

        return self._airflow.wait(pod, LONGEST_SECONDS)

    def worker_at(self, job_id: str, clip_index: int) -> None:
        """Let the worker that makes the pod of this clip wait before it defers; call this before it starts."""
        self._path(job_id, clip_index, "worker.hold").touch()

    def worker_reached(self, job_id: str, clip_index: int) -> Any:
        """Return the pod that a worker has made before its deferral."""
        self._airflow.wait(self._path(job_id, clip_index, "worker.reached").exists, LONGEST_SECONDS)
        (pod,) = self._cluster.pods(job_id, **{"s2v/clip-index": str(clip_index)})
        return pod

    def release_worker(self, job_id: str, clip_index: int) -> None:
        """Let the next worker continue."""
        self._path(job_id, clip_index, "worker.hold").unlink()

    def release(self, job_id: str, *clip_indices: int) -> None:
        """Let these clips continue."""
        for index in clip_indices:
            self._path(job_id, index, "hold").unlink()

    def _path(self, job_id: str, clip_index: int, suffix: str) -> Path:
        return self._cluster.hold_folder / f"{job_id}.{clip_index}.{suffix}"
