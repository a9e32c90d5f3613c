"""How a DAG run becomes a job: its id and its request; deterministic, so that the tasks of a run agree without XCom."""

import hashlib
import re
from collections.abc import Mapping
from typing import Any

from s2v_tasks.schemas.request import JOB_ID_PATTERN

_TIME = re.compile(r"(\d{4})-(\d\d)-(\d\d)t(\d\d):(\d\d):(\d\d).*", re.DOTALL)
_SLUG_CHARACTERS = 25  # "scheduled-20261122-101530"
_HASH_CHARACTERS = 8


def job_id_for_run(run_id: str) -> str:
    """Return a job id for an Airflow run id: its readable part and a hash that keeps different runs apart.

    "manual__2026-11-22T10:15:30.123456+00:00" becomes "manual-20261122-101530-1a2b3c4d".
    """
    words = _TIME.sub(r"\1\2\3-\4\5\6", run_id.lower())
    slug = re.sub(r"[^a-z0-9]+", "-", words).strip("-")[:_SLUG_CHARACTERS].strip("-")
    digest = hashlib.sha256(run_id.encode()).hexdigest()[:_HASH_CHARACTERS]
    return f"{slug or 'run'}-{digest}"


def job_id_of(context: Mapping[str, Any]) -> str:
    """The job of a task's run: the `job_id` that was asked for, else the one made from the run id.

    A malformed `job_id` is passed on as it is: `stage-inputs` refuses it in the words of the system.
    """
    return context["params"].get("job_id") or job_id_for_run(context["run_id"])


def request_of(context: Mapping[str, Any]) -> dict[str, Any]:
    """The request of a task's run: its params without the ones that only Airflow knows."""
    return {name: value for name, value in context["params"].items() if name != "job_id"}


__all__ = ["JOB_ID_PATTERN", "job_id_for_run", "job_id_of", "request_of"]
