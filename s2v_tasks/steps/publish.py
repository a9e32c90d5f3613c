"""publish: copy the validated video to the output prefix, and record the success of the job.

Writes <output>/<job_id>.mp4, its sidecar, and then result.json, whose presence means success.
"""

import json
from typing import Any

from s2v_tasks.errors import PermanentError
from s2v_tasks.runtime.context import StepContext
from s2v_tasks.schemas.approval import ApprovalStatus
from s2v_tasks.schemas.manifest import Artifact, ReportFacts
from s2v_tasks.schemas.request import Request
from s2v_tasks.schemas.steps import VALIDATE
from s2v_tasks.storage.artifacts import producer
from s2v_tasks.storage.layout import output_sidecar_uri, output_video_uri


def run(ctx: StepContext) -> dict[str, Any]:
    """Publish the video."""
    plan, request = ctx.plan(), ctx.request()
    report = ctx.manifest(ctx.layout.report_manifest, VALIDATE)
    video = report.inputs["video"]
    _check_approval(ctx, request, video.sha256)
    video_uri = output_video_uri(ctx.settings, ctx.job_id)
    ctx.store.upload(ctx.artifacts.fetch(video, ctx.work_dir / "video.mp4"), video_uri, "video/mp4")
    result = {
        "schema_version": 1,
        "job_id": ctx.job_id,
        "video_uri": video_uri,
        "sha256": video.sha256,
        "size_bytes": video.size_bytes,
        "num_frames": plan.num_frames,
        "duration_seconds": float(plan.duration_seconds),
        "width": plan.width,
        "height": plan.height,
        "report_key": report.outputs["report"].key,
        "contact_sheet_key": report.outputs["contact_sheet"].key,
        "quality": list(report.facts_as(ReportFacts).quality),
        "clips": [_clip(ctx, clip.clip_index) for clip in plan.clips],
        "parent_job_id": request.parent_job_id,
        # The URL of a webhook is often a secret, and other systems read the sidecar.
        "request": request.model_dump(exclude={"webhook_url"}),
        "producer": producer().model_dump(),
    }
    data = json.dumps(result, indent=2, ensure_ascii=False).encode()
    ctx.store.put_bytes(output_sidecar_uri(ctx.settings, ctx.job_id), data, "application/json")
    ctx.store.put_bytes(ctx.layout.result, data, "application/json")
    ctx.metadata.jobs.succeed(ctx.job_id, video_uri=video_uri, sha256=video.sha256, began_at=ctx.began_at)
    return {name: result[name] for name in ("video_uri", "sha256", "duration_seconds")}


def _check_approval(ctx: StepContext, request: Request, sha256: str) -> None:
    """Raise PermanentError for a video that needs an approval and has none."""
    if request.approval == "none":
        return
    found = ctx.metadata.approvals.find(ctx.job_id, None, sha256, None)
    if found is None or found.status != ApprovalStatus.APPROVED:
        raise PermanentError(
            f"Nobody has approved this video: expected an approval, because the request has approval "
            f"{request.approval}. Approve it with `s2v approve {ctx.job_id}` while the job waits for it."
        )


def _clip(ctx: StepContext, clip_index: int) -> dict[str, Any]:
    manifest = ctx.clip_manifest(clip_index)
    clip: Artifact = manifest.outputs["clip"]
    return {
        "clip_index": clip_index,
        "fingerprint": manifest.fingerprint,
        "key": clip.key,
        "sha256": clip.sha256,
        "rendered_by": manifest.facts.source_job_id or ctx.job_id,
    }
