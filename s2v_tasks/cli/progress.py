"""Progress of a job, computed from its record: solver steps over the whole plan, time left, memory, attempts."""

from dataclasses import dataclass
from typing import Any

from s2v_tasks.metadata.tables import Clip, Job
from s2v_tasks.schemas.events import JobEvent
from s2v_tasks.schemas.job import AttemptOutcome, ClipStatus


@dataclass(frozen=True)
class JobProgress:
    """A moment in the life of a job. `phase` says in words what it is at."""

    job_id: str
    status: str
    phase: str
    steps_done: int
    steps_total: int
    eta_seconds: float | None
    gpu_memory_bytes: int | None
    attempts: int
    clips_done: int
    clips_total: int

    @property
    def line(self) -> str:
        """One line for people."""
        return "  ".join([self.headline, self.numbers] if self.numbers else [self.headline])

    @property
    def headline(self) -> str:
        """Return the job, its phase, memory and attempts in one line."""
        parts = [self.job_id, self.phase]
        if self.gpu_memory_bytes:
            parts.append(f"{self.gpu_memory_bytes / 2**30:.1f} GiB")
        if self.attempts > self.clips_total:
            parts.append(f"{self.attempts} attempts")
        return "  ".join(parts)

    @property
    def numbers(self) -> str:
        """Return the finished steps and clips and the time left; empty before there is a plan."""
        if not self.steps_total:
            return ""
        done = f"{self.steps_done}/{self.steps_total} steps, {self.clips_done}/{self.clips_total} clips"
        return done if self.eta_seconds is None else f"{done}  eta {clock(self.eta_seconds)}"


def job_progress(job: Job) -> JobProgress:
    """Return the progress of `job`, which has its clips and events."""
    clips = job.clips
    done = sum(_steps_done(clip) for clip in clips)
    total = sum(clip.progress_steps or 0 for clip in clips)
    rendering = [clip for clip in clips if clip.status == ClipStatus.RENDERING]
    memory = [clip.gpu_memory_bytes for clip in rendering if clip.gpu_memory_bytes]
    seconds = _seconds_per_step(job)
    is_over = job.has_ended or done == total
    eta = None if seconds is None or is_over else (total - done) * seconds / max(1, len(rendering))
    return JobProgress(
        job_id=job.job_id,
        status=job.status,
        phase=_phase(job, rendering),
        steps_done=done,
        steps_total=total,
        eta_seconds=eta,
        gpu_memory_bytes=max(memory, default=None),
        attempts=sum(clip.attempts for clip in clips),
        clips_done=sum(clip.status == ClipStatus.SUCCEEDED for clip in clips),
        clips_total=len(clips),
    )


def clip_states(job: Job) -> list[dict[str, Any]]:
    """The clips of a job as small objects for machines."""
    names = ("clip_index", "status", "progress_step", "progress_steps", "eta_seconds", "gpu_memory_bytes", "attempts")
    return [{name: getattr(clip, name) for name in names} for clip in job.clips]


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    return f"{int(seconds) // 3600}:{int(seconds) // 60 % 60:02d}:{int(seconds) % 60:02d}"


def _steps_done(clip: Clip) -> int:
    return (clip.progress_steps if clip.status == ClipStatus.SUCCEEDED else clip.progress_step) or 0


def _seconds_per_step(job: Job) -> float | None:
    """Seconds of a solver step of this job: of the clips that it rendered, else of one that it renders."""
    own = [clip for clip in job.clips if clip.status == ClipStatus.SUCCEEDED and clip.source_job_id is None]
    rates = [(clip.render_seconds or 0) / clip.progress_steps for clip in own if clip.progress_steps]
    for clip in job.clips:
        left = (clip.progress_steps or 0) - (clip.progress_step or 0)
        if clip.status == ClipStatus.RENDERING and clip.eta_seconds is not None and left > 0:
            rates.append(clip.eta_seconds / left)
    # At the last step of the first clip nothing else is known: the time of the attempt, the loading included.
    rates = rates or [rate for clip in job.clips if (rate := _rate_of_attempt(job, clip))]
    return sum(rates) / len(rates) if rates else None


def _rate_of_attempt(job: Job, clip: Clip) -> float | None:
    began = [
        a.started_at for a in job.attempts if a.clip_index == clip.clip_index and a.outcome == AttemptOutcome.RUNNING
    ]
    if clip.status != ClipStatus.RENDERING or not clip.progress_step or not began:
        return None
    return (clip.updated_at - began[-1]).total_seconds() / clip.progress_step


def _phase(job: Job, rendering: list[Clip]) -> str:
    if job.has_ended:
        return job.status
    if rendering:
        clips = ", ".join(
            f"{clip.clip_index + 1}/{len(job.clips)} step {clip.progress_step or 0}/{clip.progress_steps}"
            for clip in rendering
        )
        return f"clip {clips}"
    last = next((event for event in reversed(job.events) if event.step), None)
    return f"{last.step} done" if last and last.event == JobEvent.STEP_FINISHED else job.status
