"""Fingerprints of clips: equal fingerprints mean equal bytes, so the clip is reused."""

from s2v_tasks.engine.clip import motion_frames_needed
from s2v_tasks.engine.options import EngineOptions
from s2v_tasks.schemas.manifest import fingerprint
from s2v_tasks.schemas.plan import ClipPlan, Plan
from s2v_tasks.schemas.steps import RENDER_CLIP

REVISION = 5  # increase it if the engine or the encoding profile gives other bytes for the same inputs


def clip_fingerprints(
    plan: Plan, inputs: dict[str, str], snapshot: str, options: EngineOptions, encoder: str
) -> list[str]:
    """Return the fingerprint of each clip, computed from its frames, seed and inputs and from the previous clip.

    `inputs`: SHA-256 by name of the artifacts that all clips read (conditions, pose). `encoder`: the build that encodes
    the clips. Inherited clips of a rerun keep their fingerprints.
    """
    prints = [clip.fingerprint for clip in plan.inherited]
    for clip in plan.clips[len(prints) :]:
        prints.append(
            fingerprint(
                RENDER_CLIP.name,
                REVISION,
                snapshot,
                inputs,
                options.for_fingerprint(),
                encoder,
                plan.sampling.model_dump(),
                [plan.width, plan.height],
                [clip.clip_index, clip.infer_frames, clip.start_frame, clip.end_frame, clip.seed],
                frames_to_keep(plan, clip),
                None if clip.predecessor is None else prints[clip.predecessor],
                *([clip.fades] if any(clip.fades) else []),
                *plan.adapter_fingerprint,
            )
        )
    return prints


def frames_to_keep(plan: Plan, clip: ClipPlan) -> int | None:
    """Return the pixel frames that the motion state must hold for the rest of the chain; None for its last clip."""
    later = []
    successor = clip.successor
    while successor is not None:
        later.append(plan.clips[successor].infer_frames)
        successor = plan.clips[successor].successor
    return motion_frames_needed(later) if later else None
