"""record_failure: record the reason of a step that could not report it; close_job makes it the reason of the job."""

from s2v_tasks.errors import PermanentError
from s2v_tasks.runtime.context import StepContext
from s2v_tasks.schemas.events import JobEvent
from s2v_tasks.schemas.job import AttemptOutcome, ClipStatus
from s2v_tasks.schemas.steps import ENCODE_CONDITIONS, Step


def run(ctx: StepContext, *, step: Step, reason: str, clip_index: int | None = None, count: int = 1) -> None:
    """Record why `step` failed; a render had `count` clips from `clip_index` on.

    Clips are rendered and stored in order, so the first unfinished clip has failed.
    """
    job = ctx.metadata.jobs.get(ctx.job_id)
    if job is None:
        raise PermanentError(f"Job {ctx.job_id!r} does not exist: `s2v jobs` lists all jobs.")
    detail = {"error": reason, "exit_code": 1}
    ctx.metadata.events.record(
        ctx.job_id, step=step.name, event=JobEvent.STEP_FAILED, clip_index=clip_index, detail=detail
    )
    if step == ENCODE_CONDITIONS:
        ctx.metadata.conditions.end(ctx.job_id, outcome=AttemptOutcome.FAILED, reason=reason)
    if clip_index is None:
        return
    of_process = range(clip_index, clip_index + count)
    open_clips = [clip for clip in job.clips if clip.clip_index in of_process and clip.status != ClipStatus.SUCCEEDED]
    if open_clips:
        ctx.metadata.clips.fail(ctx.job_id, open_clips[0].clip_index, reason)
