"""record_approval: record the answer of a person to an approval, or that nobody answered in time.

The tasks `clip.wait` and `publish` run it when they resume.
"""

from typing import Any

from s2v_tasks.errors import PermanentError
from s2v_tasks.runtime.approvals import decision, fingerprint_of, next_job
from s2v_tasks.runtime.context import StepContext
from s2v_tasks.schemas.approval import ApprovalStatus, Rejection


def run(
    ctx: StepContext,
    *,
    status: ApprovalStatus,
    clip_index: int | None = None,
    run_id: str | None = None,
    user: str | None = None,
    rejection: Rejection | None = None,
) -> dict[str, Any]:
    """Record the answer and return its consequence; an earlier answer is kept.

    A rejected job is cancelled; with changed fields another job renders the clips again. A job without an answer fails.
    """
    fingerprint = fingerprint_of(ctx, clip_index)
    job = ctx.metadata.jobs.get(ctx.job_id)
    waiting = job.waiting_approval if job else None
    if waiting is not None and (waiting.clip_index, waiting.fingerprint) == (clip_index, fingerprint):
        following = next_job(ctx, clip_index, rejection) if rejection else None
        next_job_id = following.job_id if following else None
        ctx.metadata.approvals.decide(waiting, status, user=user, rejection=rejection, next_job_id=next_job_id)
    if status == ApprovalStatus.EXPIRED:
        seconds = ctx.settings.approval_seconds
        limit = f"{seconds / 3600:g} h" if seconds >= 3600 else f"{seconds / 60:.3g} min"
        what = "the video" if clip_index is None else f"clip {clip_index + 1}"
        reason = (
            f"Nobody approved or rejected {what} within {limit} (S2V_APPROVAL_SECONDS). "
            f"Start the job again with `s2v retry {ctx.job_id}` to be asked again: finished clips are reused."
        )
        ctx.metadata.jobs.fail(ctx.job_id, reason, began_at=ctx.began_at)
        return {"status": status, "reason": reason}
    decided = ctx.metadata.approvals.find(ctx.job_id, clip_index, fingerprint, run_id)
    if decided is None:
        raise PermanentError(
            f"Job {ctx.job_id} does not wait for an approval of this version of the video or clip: start the job again."
        )
    result = decision(ctx, decided)
    if decided.status == ApprovalStatus.REJECTED:
        ctx.metadata.jobs.cancel(ctx.job_id, result["reason"], began_at=ctx.began_at)
    return result
