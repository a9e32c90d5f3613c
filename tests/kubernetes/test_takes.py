"""Check clips that are rendered again in a pod because they were measured as bad."""

from collections.abc import Callable

import pytest

from s2v_tasks.metadata.tables import Job
from tests.kubernetes.cluster import HOLD_MODULE, Cluster
from tests.kubernetes.serving import Airflow

pytestmark = [pytest.mark.kubernetes, pytest.mark.timeout(5000, func_only=True)]
BASE_SEED = 7
GATED = {"quality": "gate", "num_clip": 2, "base_seed": BASE_SEED, "sample_steps": 4}


def test_a_spoiled_clip_is_rendered_again_in_its_pod(
    airflow: Airflow,
    cluster: Cluster,
    job: Callable[[str], Job],
    render_here: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The pod of a clip of one colour renders a second take, and keeps the same take as this machine does."""
    spoiled = str(BASE_SEED + 1)
    cluster.change_template("render-clip", lambda _, box: box["env"].append({"name": "SPOILED_SEED", "value": spoiled}))
    run = airflow.trigger(job_id="gated-in-pods", **GATED)
    assert airflow.outcome(run) == "success", job("gated-in-pods").reason
    assert takes(job("gated-in-pods")) == [(1, 0), (2, 1)]

    monkeypatch.setenv("PYTHONPATH", str(HOLD_MODULE))
    monkeypatch.setenv("SPOILED_SEED", spoiled)
    render_here("gated-at-home", **GATED)
    assert takes(job("gated-at-home")) == takes(job("gated-in-pods"))
    assert job("gated-at-home").sha256 == job("gated-in-pods").sha256


def takes(record: Job) -> list[tuple[int, int | None]]:
    """Return the number of takes of each clip, and which of them is kept."""
    return [(len(clip.takes.takes), clip.takes.kept) if clip.takes else (0, None) for clip in record.clips]
