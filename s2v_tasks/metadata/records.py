"""What the database tells about a job, as plain values."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any


@dataclass(frozen=True)
class ClipRecord:
    """One clip; frames are half open, `progress_step` of `progress_steps` solver steps are done.

    `facts` tell what the rendering cost: pflops, mfu, peak memory, world size and the like.
    """

    clip_index: int
    status: str
    fingerprint: str | None
    start_frame: int
    end_frame: int
    attempts: int
    render_seconds: float | None
    progress_step: int | None
    progress_steps: int | None
    reused: bool
    facts: dict[str, Any] | None
    updated_at: datetime


@dataclass(frozen=True)
class ArtifactRecord:
    """One stored object and the step that made it."""

    key: str
    step: str
    sha256: str
    size_bytes: int
    updated_at: datetime


@dataclass(frozen=True)
class EventRecord:
    """One thing that happened."""

    id: int
    clip_index: int | None
    step: str | None
    event: str
    detail: dict[str, Any]
    at: datetime


@dataclass(frozen=True)
class JobRecord:
    """One job. `reason` says why a failed one failed; clips, artifacts and events are filled by `Ledger.job` only."""

    job_id: str
    status: str
    reason: str | None
    request: dict[str, Any] | None
    num_clip: int | None
    num_frames: int | None
    width: int | None
    height: int | None
    estimated_gpu_seconds: float | None
    video_uri: str | None
    sha256: str | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    updated_at: datetime
    clips: tuple[ClipRecord, ...] = ()
    artifacts: tuple[ArtifactRecord, ...] = ()
    events: tuple[EventRecord, ...] = ()
