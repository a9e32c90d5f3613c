"""Follow a job to its end: a live bar on a terminal, a line for each change in a pipe, or JSON lines.

The progress is computed from the record of the job: solver steps over the whole plan, time left, memory, attempts.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from s2v_tasks.cli import awaited_runs
from s2v_tasks.cli.terminal import console, open_metadata_store, print_json
from s2v_tasks.errors import ConfigurationError, PermanentError, TransientError
from s2v_tasks.schemas.events import JobEvent
from s2v_tasks.schemas.job import AttemptOutcome, ClipStatus

if TYPE_CHECKING:
    from s2v_tasks.metadata.store import MetadataStore
    from s2v_tasks.metadata.tables import Clip, Job

Watch = Annotated[
    bool, typer.Option("--watch", help="Show the progress until the job ends; exit with the code of the job.")
]
POLL_SECONDS = 1.0
_LOOKS_PER_QUESTION = 5  # reads of the metadata store between two requests to Airflow
FindRun = Callable[[], awaited_runs.AwaitedRun | None]
Show = Callable[["Job"], None]


def watch_job(
    job_id: str,
    *,
    as_json: bool,
    ended_before: datetime | None = None,
    may_come: bool = False,
    find_run: FindRun | None = None,
) -> int:
    """Show the job until it ends; its exit code: 0 succeeded, 130 cancelled, else 65, 75 or 78; 1 after Ctrl-C.

    `ended_before`: an earlier end, which is ignored; so is the end of a job that Airflow will start again. `may_come`:
    the job may not exist yet. `find_run`: asks Airflow for the run of a job that has not begun.
    """
    ask = find_run or partial(awaited_runs.find_run, job_id)
    try:
        with open_metadata_store() as metadata:
            if ended_before is None and (job := metadata.jobs.get(job_id)) and (start := find_new_start(job)):
                ended_before, ask = job.finished_at, partial(awaited_runs.find_run, job_id, start.run_id)
            _await_begin(metadata, job_id, awaited_runs.Waiting(ask), ended_before=ended_before, may_come=may_come)
            with _display(as_json) as show:
                job = _show_until_end(metadata, job_id, show)
    except KeyboardInterrupt:
        typer.echo(f"The display has ended. The job continues; `s2v cancel {job_id}` ends it.", err=True)
        return 1
    if not as_json:
        end = f"[bold]{job.job_id}[/bold] {job.status}: {escape(job.reason or job.video_uri or '')}"
        console.print(end, highlight=False)
    return job.exit_code


def _await_begin(
    metadata: "MetadataStore",
    job_id: str,
    waiting: awaited_runs.Waiting,
    *,
    ended_before: datetime | None,
    may_come: bool,
) -> None:
    """Wait until the job has started, and print the reason for the wait."""
    for look in count():
        if look % _LOOKS_PER_QUESTION == 1:
            waiting.ask()
        job = metadata.jobs.get(job_id)
        if job is not None and not (job.has_ended and job.finished_at == ended_before):
            return
        if look % _LOOKS_PER_QUESTION == 1:
            waiting.report(job)
            if job is None and waiting.run is None and waiting.is_answered and not may_come:
                raise unknown_job(job_id)
        if look:
            time.sleep(POLL_SECONDS)


def _show_until_end(metadata: "MetadataStore", job_id: str, show: Show) -> "Job":
    while True:
        job = metadata.jobs.get(job_id)
        assert job is not None  # noqa: S101 - it has begun
        show(job)
        if job.has_ended:
            return job
        time.sleep(POLL_SECONDS)


def find_new_start(job: "Job") -> awaited_runs.AwaitedRun | None:
    """Return the run that will start an ended job again; if Airflow gives no answer, report it and return None."""
    try:
        return awaited_runs.new_start_of(job)
    except (ConfigurationError, TransientError) as error:
        typer.echo(f"{error} Whether the job will start again is not known.", err=True)
        return None


def unknown_job(job_id: str) -> PermanentError:
    """Return the error for an unknown job."""
    return PermanentError(f"Job {job_id!r} does not exist: `s2v jobs` lists all jobs.")


@contextmanager
def _display(as_json: bool) -> Iterator[Show]:
    if as_json or not console.is_terminal:
        yield _lines(as_json=as_json)
    else:
        with _bar() as show:
            yield show


@contextmanager
def _bar() -> Iterator[Show]:
    """Show a job on two lines that update in place: its phase, and a bar with the numbers."""
    headline = Text("waiting for the job to begin", no_wrap=True, overflow="ellipsis")
    bar = Progress(BarColumn(bar_width=None), TextColumn("{task.description}", markup=False), expand=True)
    task = bar.add_task("", total=None)

    def show(job: "Job") -> None:
        now = job_progress(job)
        headline.plain = now.headline
        began = job.started_at
        took = "" if began is None else clock(((job.finished_at or datetime.now(UTC)) - began).total_seconds())
        numbers = "  ".join(part for part in (now.numbers, took) if part)
        bar.update(task, description=numbers, completed=now.steps_done, total=now.steps_total or None)
        live.refresh()

    with Live(Group(headline, bar), console=console, auto_refresh=False) as live:
        yield show


def _lines(*, as_json: bool) -> Show:
    """Show a job by printing a line after each change."""
    shown = ""

    def show(job: "Job") -> None:
        nonlocal shown
        now = job_progress(job)
        if now.line == shown:
            return
        shown = now.line
        if as_json:
            end = {"reason": job.reason, "video_uri": job.video_uri, "exit_code": job.exit_code}
            print_json(asdict(now) | {"clips": clip_states(job)} | (end if job.has_ended else {}), indent=None)
        else:
            console.print(now.line, markup=False)

    return show


@dataclass(frozen=True)
class JobProgress:
    """Progress of a job at one moment. `phase` describes the current work."""

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
        """Return headline and numbers in one line."""
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


def job_progress(job: "Job") -> JobProgress:
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


def clip_states(job: "Job") -> list[dict[str, Any]]:
    """Return the clips of a job as JSON objects."""
    names = ("clip_index", "status", "progress_step", "progress_steps", "eta_seconds", "gpu_memory_bytes", "attempts")
    return [{name: getattr(clip, name) for name in names} for clip in job.clips]


def clock(seconds: float) -> str:
    """Return seconds as h:mm:ss."""
    return f"{int(seconds) // 3600}:{int(seconds) // 60 % 60:02d}:{int(seconds) % 60:02d}"


def _steps_done(clip: "Clip") -> int:
    return (clip.progress_steps if clip.status == ClipStatus.SUCCEEDED else clip.progress_step) or 0


def _seconds_per_step(job: "Job") -> float | None:
    """Return the seconds per solver step, measured on finished clips, else on the clip that is being rendered."""
    own = [clip for clip in job.clips if clip.status == ClipStatus.SUCCEEDED and clip.source_job_id is None]
    rates = [(clip.render_seconds or 0) / clip.progress_steps for clip in own if clip.progress_steps]
    for clip in job.clips:
        left = (clip.progress_steps or 0) - (clip.progress_step or 0)
        if clip.status == ClipStatus.RENDERING and clip.eta_seconds is not None and left > 0:
            rates.append(clip.eta_seconds / left)
    # At the last step of the first clip only the time of the attempt is known, including loading.
    rates = rates or [rate for clip in job.clips if (rate := _rate_of_attempt(job, clip))]
    return sum(rates) / len(rates) if rates else None


def _rate_of_attempt(job: "Job", clip: "Clip") -> float | None:
    began = [
        a.started_at for a in job.attempts if a.clip_index == clip.clip_index and a.outcome == AttemptOutcome.RUNNING
    ]
    if clip.status != ClipStatus.RENDERING or not clip.progress_step or not began:
        return None
    return (clip.updated_at - began[-1]).total_seconds() / clip.progress_step


def _phase(job: "Job", rendering: "list[Clip]") -> str:
    if job.has_ended:
        return job.status
    if rendering:
        clips = ", ".join(
            f"{clip.clip_index + 1}/{len(job.clips)} step {clip.progress_step or 0}/{clip.progress_steps}"
            for clip in rendering
        )
        return f"clip {clips}"
    if waiting := job.waiting_approval:
        what = "the video" if waiting.clip_index is None else f"clip {waiting.clip_index + 1}/{len(job.clips)}"
        return f"waits for approval of {what}"
    last = next((event for event in reversed(job.events) if event.step), None)
    return f"{last.step} done" if last and last.event == JobEvent.STEP_FINISHED else job.status
