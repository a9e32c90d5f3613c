"""How long the work of a step may take. What a pod waits for, a node and its image, comes on top (see `pods`)."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from s2v_tasks.schemas.steps import Step
from s2v_tasks.settings import load_settings


def working_time(step: Step, clip: Mapping[str, Any] | None = None) -> timedelta:
    """The limit for one task; one that renders several clips has the time of each.

    In it a step may wait for S3 and after that for PostgreSQL, with its work done: those waits are not taken from it.
    """
    waits = timedelta(seconds=2 * load_settings().retry_seconds)
    return (step.timeout + waits) * (1 if clip is None else clip["count"])
