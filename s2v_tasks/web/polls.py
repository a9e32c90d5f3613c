"""The small JSON answers that pages poll.

An answer has an ETag, so that an unchanged state costs a 304 without a body. What changes while a job runs is read at
most once in a second by all viewers together: later polls of that second get the kept state.
"""

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Generic, TypeVar

from fastapi import Request
from fastapi.responses import Response

from s2v_tasks.metadata.gallery import Card
from s2v_tasks.web.pages import duration, money

KEPT_SECONDS = 1.0
MOST_KEPT = 2048
Value = TypeVar("Value")


class Recent(Generic[Value]):
    """Cache of one value per job, for a second. One thread reads at a time; the others use its result."""

    def __init__(self, read: Callable[[list[str]], Mapping[str, Value]]) -> None:
        self._read = read
        self._lock = threading.Lock()
        self._kept: dict[str, tuple[float, Value | None]] = {}

    def of(self, job_ids: Iterable[str]) -> dict[str, Value]:
        """Return the values of these jobs, at most a second old; jobs that do not exist are left out."""
        wanted = list(job_ids)
        with self._lock:
            fresh = time.monotonic() - KEPT_SECONDS
            missing = [job_id for job_id in wanted if self._kept.get(job_id, (fresh, None))[0] <= fresh]
            if missing:
                self._keep(missing, fresh)
            found = {job_id: self._kept[job_id][1] for job_id in wanted}
        return {job_id: value for job_id, value in found.items() if value is not None}

    def _keep(self, job_ids: list[str], fresh: float) -> None:
        read_at, values = time.monotonic(), self._read(job_ids)
        if len(self._kept) > MOST_KEPT:
            self._kept = {job_id: kept for job_id, kept in self._kept.items() if kept[0] > fresh}
        self._kept.update({job_id: (read_at, values.get(job_id)) for job_id in job_ids})


def card_state(card: Card) -> dict[str, Any]:
    """Return the parts of a job that change while it runs."""
    state: dict[str, Any] = {"status": card.status, "done": card.num_finished, "of": card.num_clip}
    if card.has_ended and card.reason is not None:
        state["reason"] = card.reason
    if card.cost is not None:
        state["cost"] = money(card.cost, card.currency)
    if card.active is not None and not card.has_ended:
        active = card.active
        state |= {"clip": active.clip_index, "step": active.step, "steps": active.num_steps}
        if active.eta_seconds is not None:
            state["eta"] = duration(active.eta_seconds)
    if card.waits_for is not None and not card.has_ended:
        state["waits"] = card.waits_for
    return state


def json_with_etag(request: Request, value: Any) -> Response:
    """Return `value` as JSON, or 304 if the browser has it."""
    body = json.dumps(value, separators=(",", ":"), sort_keys=True).encode()
    etag = f'"{hashlib.sha256(body).hexdigest()[:20]}"'
    # An explicit encoding keeps Airflow's server from compressing so small an answer.
    headers = {"ETag": etag, "Cache-Control": "private, no-cache", "Content-Encoding": "identity"}
    if request.headers.get("if-none-match", "").removeprefix("W/") == etag:
        return Response(status_code=304, headers=headers)
    return Response(body, media_type="application/json", headers=headers)
