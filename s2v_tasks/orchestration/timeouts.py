"""How long the work of a step may take. What a pod waits for, a node and its image, comes on top (see `pods`)."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from s2v_tasks.settings import load_settings

_OF_STEPS = {"encode-conditions": timedelta(hours=1), "render-clip": timedelta(hours=6)}
_DEFAULT = timedelta(minutes=30)


def working_time(step: str, clip: Mapping[str, Any] | None = None) -> timedelta:
    """The limit for one task; one that renders several clips has the time of each.

    In it a step may wait for S3 and after that for PostgreSQL, with its work done: those waits are not taken from it.
    """
    waits = timedelta(seconds=2 * load_settings().retry_seconds)
    return (_OF_STEPS.get(step, _DEFAULT) + waits) * (1 if clip is None else clip["count"])
