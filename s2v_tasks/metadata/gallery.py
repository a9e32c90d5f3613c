"""Pages of jobs with the progress and the cost of each, and the state of one job for a poll.

A page and a poll read a bounded number of rows for any number of jobs: pages use keyset pagination, and a poll reads
one job by its key.
"""

import base64
import binascii
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

import sqlalchemy as sa

from s2v_tasks.errors import PermanentError
from s2v_tasks.metadata.session import transaction
from s2v_tasks.metadata.sql import Repository, spent_gpu_seconds
from s2v_tasks.metadata.tables import Approval, Clip, Event, Job
from s2v_tasks.schemas.approval import ApprovalStatus
from s2v_tasks.schemas.job import ENDED_STATUSES, ClipStatus

PAGE_SIZE = 24
EXCERPT_CHARACTERS = 200


@dataclass(frozen=True)
class JobFilter:
    """The jobs to show; None means all. `text` is searched in the job id and in the prompt."""

    status: str | None = None
    source: str | None = None
    label: tuple[str, str] | None = None
    text: str | None = None


class Cursor(NamedTuple):
    """The place of a job in the list, newest first."""

    created_at: datetime
    job_id: str

    def __str__(self) -> str:
        text = json.dumps([self.created_at.isoformat(), self.job_id])
        return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")

    @classmethod
    def parse(cls, text: str) -> "Cursor":
        """Return the cursor of a link; PermanentError if the text is not a cursor."""
        try:
            created_at, job_id = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
            return cls(datetime.fromisoformat(created_at), str(job_id))
        except (ValueError, TypeError, binascii.Error):
            raise PermanentError(f"page {text[:40]!r}: expected the link of a page; open the first page.") from None


@dataclass(frozen=True)
class ActiveClip:
    """The clip that is rendered now: `step` of `num_steps` solver steps are done."""

    clip_index: int
    step: int
    num_steps: int
    eta_seconds: float | None


@dataclass(frozen=True)
class Card:
    """One job of a page. `prompt` and `reason` are their beginnings; `cost` is None while the job has no price.

    `reason`: reason of a failed or cancelled job.
    """

    job_id: str
    status: str
    reason: str | None
    prompt: str | None
    labels: dict[str, Any]
    preset: str | None
    parent_job_id: str | None
    dag_run_id: str | None
    num_clip: int | None
    num_frames: int | None
    gpu_seconds: float
    cost: float | None
    estimated_cost: float | None
    currency: str | None
    created_at: datetime
    num_finished: int = 0
    active: ActiveClip | None = None
    waits_for: str | None = None  # the part that a person must approve: "the video" or "clip 2"

    @property
    def has_ended(self) -> bool:
        """Return True if the job has ended."""
        return self.status in ENDED_STATUSES

    @property
    def cursor(self) -> Cursor:
        """Return the place of this job in the list."""
        return Cursor(self.created_at, self.job_id)


@dataclass(frozen=True)
class Page:
    """One page of jobs. `next` is None on the last page."""

    cards: tuple[Card, ...]
    next: Cursor | None


class GalleryRepository(Repository):
    """Lists of jobs for people."""

    def page(self, chosen: JobFilter, after: Cursor | None = None) -> Page:
        """Return the jobs that follow `after`, newest first."""
        with transaction(self._engine) as connection:
            cards = _with_progress(connection, connection.execute(page_statement(chosen, after)).mappings().all())
        more = cards[PAGE_SIZE - 1].cursor if len(cards) > PAGE_SIZE else None
        return Page(tuple(cards[:PAGE_SIZE]), more)

    def cards(self, job_ids: Sequence[str]) -> list[Card]:
        """Return these jobs, in any order; jobs that do not exist are left out."""
        with transaction(self._engine) as connection:
            rows = connection.execute(_cards().where(Job.job_id.in_(job_ids))).mappings().all()
            return _with_progress(connection, rows)

    def last_event_id(self, job_id: str) -> int:
        """Return the id of the latest event of a job, 0 if it has none."""
        latest = sa.select(sa.func.coalesce(sa.func.max(Event.id), 0)).where(Event.job_id == job_id)
        return int(self._execute(latest).scalar_one())

    def job_of_run(self, dag_run_id: str) -> str | None:
        """Return the id of the job whose latest DAG run is this one; None if there is none."""
        return self._execute(sa.select(Job.job_id).where(Job.dag_run_id == dag_run_id).limit(1)).scalar_one_or_none()


def page_statement(chosen: JobFilter, after: Cursor | None) -> sa.Select[Any]:
    """Return the query of one page and of the first job after it."""
    statement = _cards().order_by(Job.created_at.desc(), Job.job_id.desc()).limit(PAGE_SIZE + 1)
    if after is not None:
        statement = statement.where(sa.tuple_(Job.created_at, Job.job_id) < sa.tuple_(*after))
    if chosen.status is not None:
        statement = statement.where(Job.status == chosen.status)
    if chosen.source is not None:
        statement = statement.where(Job.source == chosen.source)
    if chosen.label is not None:
        statement = statement.where(Job.labels.contains(dict([chosen.label])))
    if chosen.text:
        prompt = Job.request["prompt"].astext
        in_prompt, in_id = (column.icontains(chosen.text, autoescape=True) for column in (prompt, Job.job_id))
        statement = statement.where(sa.or_(in_id, in_prompt))
    return statement


def _cards() -> sa.Select[Any]:
    gpu_seconds = spent_gpu_seconds()
    return sa.select(
        *(Job.job_id, Job.status, Job.labels, Job.preset, Job.parent_job_id, Job.dag_run_id),
        sa.func.left(Job.request["prompt"].astext, EXCERPT_CHARACTERS).label("prompt"),
        sa.func.left(Job.reason, EXCERPT_CHARACTERS).label("reason"),
        *(Job.num_clip, Job.num_frames, Job.currency, Job.created_at),
        gpu_seconds.label("gpu_seconds"),
        (gpu_seconds * Job.cost_per_gpu_hour / 3600).label("cost"),
        (Job.estimated_gpu_seconds * Job.cost_per_gpu_hour / 3600).label("estimated_cost"),
    )


def _with_progress(connection: sa.Connection, rows: Sequence[Any]) -> list[Card]:
    """Return the rows as cards with the progress of their clips."""
    ids = [row["job_id"] for row in rows]
    if not ids:
        return []
    counts, active = _num_finished(connection, ids), _active_clips(connection, ids)
    parts = _awaited_parts(connection, ids)
    return [
        Card(
            **row,
            num_finished=counts.get(row["job_id"], 0),
            active=active.get(row["job_id"]),
            waits_for=parts.get(row["job_id"]),
        )
        for row in rows
    ]


def _num_finished(connection: sa.Connection, job_ids: Sequence[str]) -> dict[str, int]:
    statement = (
        sa
        .select(Clip.job_id, sa.func.count().label("num_clips"))
        .where(Clip.job_id.in_(job_ids), Clip.status == ClipStatus.SUCCEEDED)
        .group_by(Clip.job_id)
    )
    return {row.job_id: row.num_clips for row in connection.execute(statement)}


def _active_clips(connection: sa.Connection, job_ids: Sequence[str]) -> dict[str, ActiveClip]:
    """Return the first clip that is rendered now, by job."""
    statement = (
        sa
        .select(Clip.job_id, Clip.clip_index, Clip.progress_step, Clip.progress_steps, Clip.eta_seconds)
        .where(Clip.job_id.in_(job_ids), Clip.status == ClipStatus.RENDERING)
        .order_by(Clip.clip_index.desc())
    )
    return {
        row.job_id: ActiveClip(row.clip_index, row.progress_step or 0, row.progress_steps or 0, row.eta_seconds)
        for row in connection.execute(statement)
    }


def _awaited_parts(connection: sa.Connection, job_ids: Sequence[str]) -> dict[str, str]:
    """Return the part that a person must approve, by job."""
    statement = sa.select(Approval.job_id, Approval.clip_index).where(
        Approval.job_id.in_(job_ids), Approval.status == ApprovalStatus.WAITING
    )
    return {
        row.job_id: "the video" if row.clip_index is None else f"clip {row.clip_index + 1}"
        for row in connection.execute(statement)
    }
