"""Polls: small JSON answers with an ETag, so that an unchanged state costs a 304 without a body."""

import hashlib
import json
from typing import Any

from fastapi import Request
from fastapi.responses import Response

from s2v_tasks.metadata.gallery import Card
from s2v_tasks.web.rendering import duration, money


def card_state(card: Card) -> dict[str, Any]:
    """Return the parts of a job that change while it runs."""
    state: dict[str, Any] = {"status": card.status, "done": card.num_finished, "of": card.num_clip}
    if card.cost is not None:
        state["cost"] = money(card.cost, card.currency)
    if card.active is not None and not card.has_ended:
        active = card.active
        state |= {"clip": active.clip_index, "step": active.step, "steps": active.num_steps}
        if active.eta_seconds is not None:
            state["eta"] = duration(active.eta_seconds)
    return state


def json_with_etag(request: Request, value: Any) -> Response:
    """Return `value` as JSON, or 304 if the browser has it."""
    body = json.dumps(value, separators=(",", ":"), sort_keys=True).encode()
    etag = f'"{hashlib.sha256(body).hexdigest()[:20]}"'
    # The encoding is said so that Airflow's server does not compress so small an answer.
    headers = {"ETag": etag, "Cache-Control": "private, no-cache", "Content-Encoding": "identity"}
    if request.headers.get("if-none-match", "").removeprefix("W/") == etag:
        return Response(status_code=304, headers=headers)
    return Response(body, media_type="application/json", headers=headers)
