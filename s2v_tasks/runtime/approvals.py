"""Approvals inside a step: the judged bytes, and the consequence of the answer."""

from dataclasses import dataclass
from typing import Any

from s2v_tasks.metadata.tables import Approval
from s2v_tasks.runtime.context import StepContext
from s2v_tasks.schemas.approval import ApprovalStatus, Rejection
from s2v_tasks.schemas.request import Request
from s2v_tasks.schemas.rerun import changes_something, rerun_job_id, rerun_request
from s2v_tasks.schemas.steps import VALIDATE
from s2v_tasks.storage.locations import printable


@dataclass(frozen=True)
class NextJob:
    """The rerun that a rejection starts."""

    job_id: str
    request: Request


def fingerprint_of(ctx: StepContext, clip_index: int | None) -> str:
    """Return the identity of the judged bytes: the fingerprint of a clip, or the SHA-256 of the validated video."""
    if clip_index is not None:
        return ctx.clip_manifest(clip_index).fingerprint
    return ctx.manifest(ctx.layout.report_manifest, VALIDATE).inputs["video"].sha256


def next_job(ctx: StepContext, clip_index: int | None, rejection: Rejection) -> NextJob | None:
    """Return the rerun with the fields that a rejection changes; None if it changes nothing.

    Equal rejections give the same job id, so that the rerun starts once.
    """
    earlier, plan = ctx.request(), ctx.plan()
    first = rejection.first_clip(clip_index, plan.num_clip)
    if not rejection.changes or not changes_something(earlier, plan, rejection.changes, first):
        return None
    request = rerun_request(ctx.job_id, earlier, rejection.changes, first)
    return NextJob(rerun_job_id(ctx.job_id, request), request)


def decision(ctx: StepContext, approval: Approval) -> dict[str, Any]:
    """Return the consequence of an answer: the reason of a rejection, and the rerun to start."""
    if approval.status == ApprovalStatus.APPROVED:
        return {"status": approval.status, "user": approval.decided_by}
    rejection = Rejection.model_validate(approval.rejection or {})
    what = "The video" if approval.clip_index is None else f"Clip {approval.clip_index + 1}"
    reason = f"{what} was rejected by {approval.decided_by or 'a person'}"
    if note := printable(" ".join((rejection.note or "").split())).rstrip(". "):
        reason += f": {note}"
    following = next_job(ctx, approval.clip_index, rejection)
    if following is None:
        return {"status": approval.status, "reason": f"{reason}. Finished clips are kept for a rerun."}
    from_clip = following.request.from_clip or 0
    changes = rejection.changes | {"parent_job_id": ctx.job_id, "from_clip": from_clip}
    return {
        "status": approval.status,
        "reason": f"{reason}. Job {following.job_id} renders it again from clip {from_clip + 1}.",
        "next_job": {"job_id": following.job_id, "changes": changes},
    }
