"""Sentences and rows for people: events of a job, the fields of its request, and errors of the forms."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from s2v_tasks.errors import PermanentError
from s2v_tasks.metadata.tables import Event
from s2v_tasks.schemas.events import JobEvent
from s2v_tasks.schemas.request import Request
from s2v_tasks.schemas.steps import ASK_APPROVAL, PIPELINE, RECORD_APPROVAL

MAX_EVENTS = 200
_HIDDEN_FIELDS = frozenset({"webhook_url", "prompt", "labels"})  # a secret, and what the page shows elsewhere
# Names of fields that are no words of a form, and the labels that the forms show.
_LABELS = {name: str(field.title) for name, field in Request.model_fields.items() if "_" in name}
_LABELS |= {"job_id": "Name", "job id": "name", "from_clip": "From clip"}
_LABELED = re.compile(rf"\b({'|'.join(_LABELS)})\b")
_STEP_NAMES = {step.name: step.name.replace("_", " ") for step in PIPELINE}
_SENTENCES: dict[str, str] = {
    JobEvent.JOB_QUEUED: "Submitted",
    JobEvent.JOB_STARTED: "Started",
    JobEvent.JOB_PLANNED: "Planned: {num_clip} clips, {num_frames} frames, {width} × {height}",
    JobEvent.JOB_SUCCEEDED: "Video published",
    JobEvent.JOB_FAILED: "Failed: {reason}",
    JobEvent.JOB_CANCELLED: "Cancelled: {reason}",
    JobEvent.JOB_RETRIED: "Queued again",
    JobEvent.CANCEL_REQUESTED: "Cancel requested",
    JobEvent.REQUEST_REFUSED: "Another request was refused: {error}",
    JobEvent.RUN_LOST: "Its run in Airflow is gone",
    JobEvent.CLIP_STARTED: "{clip} started, attempt {attempt}",
    JobEvent.CLIP_SUCCEEDED: "{clip} is stored",
    JobEvent.CLIP_INHERITED: "{clip} is reused from {source_job_id}",
    JobEvent.CLIP_FAILED: "{clip} failed: {reason}",
    JobEvent.CLIP_INTERRUPTED: "{clip} was interrupted",
    JobEvent.CLIP_MEASURED: "{clip} is measured",
    JobEvent.STEP_FINISHED: "{step} finished",
    JobEvent.STEP_FAILED: "{step} failed: {error}",
    JobEvent.APPROVAL_REQUESTED: "{judged} waits for approval",
    JobEvent.APPROVAL_GIVEN: "{judged} was approved by {user}",
    JobEvent.APPROVAL_REFUSED: "{judged} was rejected by {user}{because}",
    JobEvent.APPROVAL_EXPIRED: "{judged} was not answered in time",
    JobEvent.USER_ACTION: "{user}: {action}",
}
_BAD_EVENTS = {JobEvent.JOB_FAILED, JobEvent.CLIP_FAILED, JobEvent.STEP_FAILED, JobEvent.RUN_LOST}
_BAD_EVENTS |= {JobEvent.APPROVAL_REFUSED, JobEvent.APPROVAL_EXPIRED}
# The events of the approvals say it.
_HIDDEN = {(JobEvent.STEP_FINISHED, step.name) for step in (ASK_APPROVAL, RECORD_APPROVAL)}


@dataclass(frozen=True)
class EventRow:
    """One event as a sentence."""

    at: datetime
    text: str
    is_bad: bool


class _Values(dict[str, Any]):
    def __missing__(self, key: str) -> str:
        return "?"


def event_rows(events: Sequence[Event]) -> list[EventRow]:
    """Return the latest events, the newest first."""
    shown = [event for event in events if (event.event, event.step) not in _HIDDEN]
    return [EventRow(event.at, _sentence(event), event.event in _BAD_EVENTS) for event in reversed(shown[-MAX_EVENTS:])]


def _sentence(event: Event) -> str:
    clip = "" if event.clip_index is None else f"Clip {event.clip_index + 1}"
    step = _STEP_NAMES.get(event.step or "", event.step or "Step")
    given = {name: value for name, value in event.detail.items() if value is not None}
    values = given | {
        "clip": clip,
        "judged": clip or "The video",
        "because": f": {given['note']}" if given.get("note") else "",
        "step": f"{step} ({clip.lower()})" if clip else step,
    }
    return _SENTENCES.get(event.event, event.event).format_map(_Values(values))


def with_labels(text: str) -> str:
    """Return a message for people who see a form, with the labels of the form instead of the names of fields."""
    return _LABELED.sub(lambda found: _LABELS[found[0]], text)


def check_first_clip(index: int, last_index: int) -> None:
    """Raise PermanentError if the first clip to render again is after the last possible one; a form counts from 1."""
    if index > last_index:
        raise PermanentError(f"{_LABELS['from_clip']} {index + 1}: expected 1 to {last_index + 1}.")


def request_rows(request: dict[str, Any]) -> list[tuple[str, str]]:
    """Return title and value of the fields that a request sets, without secrets and with the names of the form."""
    rows = []
    for name, field in Request.model_fields.items():
        value = request.get(name)
        if name not in _HIDDEN_FIELDS and value is not None and value != field.default:
            shown = value + 1 if name == "from_clip" and isinstance(value, int) else value  # pages count from 1
            rows.append((field.title or name, str(shown)))
    return rows
