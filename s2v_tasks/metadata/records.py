"""What the database tells about a job, as plain values."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from s2v_tasks.errors import ConfigurationError, PermanentError, TransientError
from s2v_tasks.schemas.events import JobEvent
from s2v_tasks.schemas.job import ENDED_STATUSES, JobStatus

CANCELLED_EXIT_CODE = 130
_TELLING_EXIT_CODES = {error.exit_code for error in (PermanentError, ConfigurationError, TransientError)}


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
    eta_seconds: float | None
    gpu_memory_bytes: int | None
    reused: bool
    source_job_id: str | None
    facts: dict[str, Any] | None
    updated_at: datetime


@dataclass(frozen=True)
class AttemptRecord:
    """One rendering of a clip, or encoding of conditions, that was begun; `gpu_seconds` grow while it runs."""

    step: str
    clip_index: int | None
    attempt: int
    started_at: datetime
    finished_at: datetime | None
    outcome: str
    gpu_seconds: float | None
    world_size: int
    reason: str | None


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
    """One job. `reason` says why a failed one failed; only `Ledger.job` fills clips, attempts, artifacts, events."""

    job_id: str
    status: str
    reason: str | None
    request: dict[str, Any] | None
    parent_job_id: str | None
    from_clip: int | None
    preset: str | None
    priority: str
    labels: dict[str, str]
    source: str | None
    dag_run_id: str | None
    num_clip: int | None
    num_frames: int | None
    width: int | None
    height: int | None
    estimated_gpu_seconds: float | None
    gpu: str | None
    cost_per_gpu_hour: float | None
    currency: str | None
    video_uri: str | None
    sha256: str | None
    cancel_requested_at: datetime | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    updated_at: datetime
    clips: tuple[ClipRecord, ...] = ()
    attempts: tuple[AttemptRecord, ...] = ()
    artifacts: tuple[ArtifactRecord, ...] = ()
    events: tuple[EventRecord, ...] = ()

    @property
    def has_ended(self) -> bool:
        """Whether nothing more happens unless the job is started again."""
        return self.status in ENDED_STATUSES

    @property
    def exit_code(self) -> int:
        """What a command ends with that waited for this job, which `Ledger.job` gave.

        0: succeeded; 130: cancelled; else that of the step that failed last, 75 where it could not say.
        """
        if self.status == JobStatus.SUCCEEDED:
            return 0
        if self.status == JobStatus.CANCELLED:
            return CANCELLED_EXIT_CODE
        codes = [int(event.detail["exit_code"]) for event in self.events if event.event == JobEvent.STEP_FAILED]
        return codes[-1] if codes and codes[-1] in _TELLING_EXIT_CODES else TransientError.exit_code
