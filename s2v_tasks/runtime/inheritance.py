"""Copy to a rerun from its parent job: the staged inputs, the frames of the plan, and the clips before `from_clip`.

Copies keep their checksums and fingerprints, and the parent may be deleted afterwards.
"""

import json

from s2v_tasks.errors import PermanentError
from s2v_tasks.planning.rerun import check_from_clip
from s2v_tasks.runtime.context import StepContext
from s2v_tasks.schemas.manifest import ClipFacts, ConditionsFacts, Manifest
from s2v_tasks.schemas.plan import ClipPlan, InheritedClip, Plan
from s2v_tasks.schemas.request import Request
from s2v_tasks.schemas.request_parsing import parse_request
from s2v_tasks.schemas.rerun import SAMPLING_FIELDS
from s2v_tasks.storage.clip_state import TakeRecords
from s2v_tasks.storage.layout import JobLayout

# Fields that a rerun may change: sampling, and fields that no clip depends on.
CHANGEABLE = frozenset({
    "prompt", "preset", "base_seed", *SAMPLING_FIELDS,
    "clips_per_pod", "priority", "labels", "max_gpu_seconds", "max_cost", "webhook_url", "parent_job_id", "from_clip",
    "quality", "max_retakes", "after_retakes", "approval",
})  # fmt: skip


def parent_request(ctx: StepContext, request: Request) -> Request:
    """Return the request of the parent; PermanentError if it is missing or the rerun changes another field."""
    parent_id = str(request.parent_job_id)
    if parent_id == ctx.job_id:
        raise PermanentError(f"parent_job_id {parent_id!r} is the job itself: a rerun is a new job with a new id.")
    parent = parse_request(json.loads(_read(ctx, parent_id, JobLayout(parent_id).request)))
    ours, theirs = request.model_dump(), parent.model_dump()
    for name in sorted(set(ours) - CHANGEABLE):
        if ours[name] != theirs[name]:
            raise PermanentError(
                f"{name} {ours[name]!r}: expected {theirs[name]!r}, as in job {parent_id}, whose clips are reused. "
                f"A rerun may change {', '.join(sorted(CHANGEABLE - {'parent_job_id', 'from_clip'}))}."
            )
    return parent


def inherited_plan(ctx: StepContext, request: Request) -> Plan | None:
    """Return the plan of an earlier start of this rerun; None if there is none, or if a copy is lost.

    Since then the parent may have been deleted, or started again with another request.
    """
    layout, stored = ctx.layout, ctx.store.find_bytes(ctx.layout.plan)
    if stored is None or ctx.request() != request:
        return None
    plan, staged = Plan.model_validate_json(stored), ctx.artifacts.read_manifest(layout.input_manifest)
    copies = {layout.clip_manifest(clip.clip_index): clip.fingerprint for clip in plan.inherited}
    if staged is not None:
        copies[layout.input_manifest] = staged.fingerprint
    are_whole = all(ctx.artifacts.reusable(key, made_from) for key, made_from in copies.items())
    return plan if staged is not None and are_whole else None


def parent_plan(ctx: StepContext, request: Request) -> Plan:
    """Return the plan of the parent; PermanentError if it has no clip `from_clip`."""
    layout = JobLayout(str(request.parent_job_id))
    plan = Plan.model_validate_json(_read(ctx, layout.job_id, layout.plan))
    check_from_clip(plan, request.from_clip or 0)
    return plan


def inherit_inputs(ctx: StepContext, parent_id: str) -> None:
    """Copy the staged inputs of the parent to this job."""
    source = ctx.artifacts.read_manifest(JobLayout(parent_id).input_manifest)
    if source is None:
        raise PermanentError(f"Job {parent_id} has no staged inputs: expected a job that has staged its inputs.")
    manifest = ctx.artifacts.adopt(source, ctx.job_id, ctx.layout.input_manifest, begin=ctx.withdraw_result)
    ctx.metadata.artifacts.record(manifest)


def inherit_clips(ctx: StepContext, parent: Plan, request: Request, from_clip: int) -> tuple[InheritedClip, ...]:
    """Copy the clips of the parent before `from_clip` to this job.

    PermanentError if a clip is not finished or does not match `request` (of the parent) and its plan: the parent may
    have been restarted with another prompt.
    """
    adopted: dict[int, Manifest] = {}
    inputs = _inputs_of_clips(ctx, parent.job_id, request)
    for clip in parent.clips[:from_clip]:
        name = f"Clip {clip.clip_index} of job {parent.job_id}"
        source = ctx.artifacts.read_manifest(JobLayout(parent.job_id).clip_manifest(clip.clip_index))
        if source is None or not _is_decided(ctx, source, parent, request):
            raise PermanentError(
                f"{name} is not finished: expected all clips before from_clip {from_clip} to be. "
                f"Rerun from clip {clip.clip_index}, or let that job finish first."
            )
        if not _belongs(source, clip, parent, inputs | _motion_before(clip, adopted)):
            raise PermanentError(
                f"{name} belongs to an earlier start: expected a clip of the current request and plan of that job. "
                f"Rerun from clip {clip.clip_index}, or let that job finish first."
            )
        key = ctx.layout.clip_manifest(clip.clip_index)
        manifest = ctx.artifacts.adopt(source, ctx.job_id, key, begin=ctx.withdraw_result)
        TakeRecords(ctx.store, ctx.layout).copy(JobLayout(parent.job_id), clip.clip_index)
        adopted[clip.clip_index] = manifest
        ctx.metadata.artifacts.record(manifest)
    return tuple(
        InheritedClip(
            clip_index=clip_index,
            fingerprint=manifest.fingerprint,
            source_job_id=manifest.facts.source_job_id or parent.job_id,
            source_manifest_key=JobLayout(parent.job_id).clip_manifest(clip_index),
        )
        for clip_index, manifest in adopted.items()
    )


def _inputs_of_clips(ctx: StepContext, job_id: str, request: Request) -> dict[str, str]:
    """Return the SHA-256 of the inputs of all clips of a job by name, without conditions of another request.

    The staged inputs belong to `request`: a changed request deletes the plan, and a plan needs staged inputs.
    """
    layout = JobLayout(job_id)
    staged, conditions = (
        ctx.artifacts.read_manifest(key) for key in (layout.input_manifest, layout.conditions_manifest)
    )
    found = {}
    if staged and "pose" in staged.outputs:
        found["pose"] = staged.outputs["pose"].sha256
    if staged and conditions and conditions.facts_as(ConditionsFacts).prompt == request.prompt:
        same = [conditions.inputs[name].sha256 == staged.outputs[name].sha256 for name in ("image", "audio_16k")]
        if all(same):
            found["conditions"] = conditions.outputs["conditions"].sha256
    return found


def _motion_before(clip: ClipPlan, adopted: dict[int, Manifest]) -> dict[str, str]:
    """Return the SHA-256 of the motion state before a clip by name; empty for the first clip of a chain."""
    return {} if clip.predecessor is None else {"motion": adopted[clip.predecessor].outputs["motion"].sha256}


def _belongs(source: Manifest, clip: ClipPlan, plan: Plan, inputs: dict[str, str]) -> bool:
    """Return True if a clip is of this plan and made from these inputs.

    An inherited clip has the inputs of another job; the plan has its fingerprint.
    """
    if clip.clip_index < len(plan.inherited):
        return source.fingerprint == plan.inherited[clip.clip_index].fingerprint
    made_from = {name: artifact.sha256 for name, artifact in source.inputs.items()}
    return made_from == inputs and source.facts_as(ClipFacts).plan_digest == plan.digest_of(clip)


def _is_decided(ctx: StepContext, source: Manifest, parent: Plan, request: Request) -> bool:
    """Return False for a take of the parent that may still be rendered again."""
    if request.quality != "gate" or (source.clip_index or 0) < len(parent.inherited):
        return True
    return TakeRecords(ctx.store, JobLayout(parent.job_id)).kept(source) is not None


def _read(ctx: StepContext, parent_id: str, key: str) -> bytes:
    data = ctx.store.find_bytes(key)
    if data is None:
        raise PermanentError(
            f"Job {parent_id} has no {key.rpartition('/')[2]}: expected a job that was planned; `s2v jobs` lists them."
        )
    return data
