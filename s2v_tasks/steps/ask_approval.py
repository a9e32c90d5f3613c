"""ask_approval: record that a person must approve a clip or the video, unless it is decided already.

The tasks `clip.wait` and `publish` run it before they wait for the answer.
"""

from datetime import UTC, datetime
from typing import Any

from s2v_tasks.runtime.approvals import decision, fingerprint_of
from s2v_tasks.runtime.context import StepContext
from s2v_tasks.schemas.approval import ApprovalStatus, last_first_clip


def run(ctx: StepContext, *, clip_index: int | None = None, run_id: str | None = None) -> dict[str, Any]:
    """Return the decision, or `waiting` with the question. Without `clip_index` it is about the video."""
    approval = ctx.metadata.approvals.request(
        ctx.job_id,
        clip_index,
        fingerprint_of(ctx, clip_index),
        run_id=run_id,
        seconds=ctx.settings.approval_seconds,
    )
    if approval.status != ApprovalStatus.WAITING:
        result = decision(ctx, approval)
        if approval.status == ApprovalStatus.REJECTED:
            # record_approval may have been killed before it
            ctx.metadata.jobs.cancel(ctx.job_id, result["reason"], began_at=ctx.began_at)
        return result
    num_clip = ctx.plan().num_clip
    what = "the video" if clip_index is None else f"clip {clip_index + 1} of {num_clip}"
    return {
        "status": approval.status,
        "subject": f"Approve {what} of job {ctx.job_id}?",
        "last_clip": last_first_clip(clip_index, num_clip),
        "wait_seconds": (approval.expires_at - datetime.now(UTC)).total_seconds(),
    }
