"""Make the plan of a job from the request, its preset and its inputs, before any GPU time is spent."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction

from s2v_tasks.errors import PermanentError
from s2v_tasks.planning.chains import Samples, find_cuts
from s2v_tasks.planning.clips import Slot, frames_of_speech, lay_out
from s2v_tasks.planning.estimate import ClipShape, Cost, clip_tokens
from s2v_tasks.planning.installation import Installation
from s2v_tasks.planning.resolution import cropped_share, plan_size
from s2v_tasks.planning.sampling import adapter_warnings, choose_sampling
from s2v_tasks.planning.warnings import (
    clip_count_warnings,
    cut_warnings,
    face_warnings,
    input_warnings,
    offload_warnings,
    picture_warnings,
    preview_warning,
    prompt_warnings,
)
from s2v_tasks.schemas.plan import FPS, ClipPlan, Cut, InputFacts, Plan, Sampling, SpeechFacts
from s2v_tasks.schemas.preset import find_preset
from s2v_tasks.schemas.request import Request
from s2v_tasks.schemas.request_fields import Transition

SEED_RANGE = 2**63 - 1000  # leaves room for seed + clip_index below 2**63
CROSSFADE_FRAMES = 4  # 250 ms: as long as a chain holds its first picture (ADR 4, ADR 7)
MIN_FADING_INFER_FRAMES = 20  # clips of 16 frames cannot share: one clip would only fade out


@dataclass(frozen=True)
class PlanInputs:
    """The speech and the picture of a plan.

    `image_size` is (width, height) in pixels as the picture is shown. `samples` `[n]` is the speech at 16 kHz; a
    request with continuity cut needs it (ADR 7). `facts` give warnings only.
    """

    speech: SpeechFacts
    image_size: tuple[int, int]
    samples: Samples | None = None
    facts: InputFacts = field(default_factory=InputFacts)


def make_plan(request: Request, job_id: str, inputs: PlanInputs, installation: Installation) -> Plan:
    """Return the plan of `job_id` (ADR 3).

    Raises PermanentError for an unknown preset or adapter, an empty speech, too many clips, or a picture that is too
    long or too wide.
    """
    speech, model, cards = inputs.speech, installation.model, installation.catalogue.adapters
    preset = find_preset(installation.catalogue.presets, request.preset)
    num_clip = request.num_clip or preset.num_clip
    infer_frames = request.infer_frames or preset.infer_frames
    size = request.size or preset.size
    choice = choose_sampling(request, preset, cards)
    sampling = choice.sampling
    speech_frames = frames_of_speech(speech)
    cuts = _cuts(request, inputs.samples, speech_frames)
    slots, needed = _slots([0, *(cut.frame for cut in cuts), speech_frames], infer_frames, num_clip, request.transition)
    _check_clip_count(len(slots), infer_frames, installation.max_clips)
    num_frames = slots[-1].end_frame
    width, height = plan_size(*inputs.image_size, size)
    base_seed = job_seed(job_id) if request.base_seed == -1 else request.base_seed
    shapes = [_clip_shape(width, height, slot, sampling) for slot in slots]
    costs = installation.costs(shapes, sampling)
    warnings = [
        *([preview_warning(job_id, sampling)] if preset.preview else []),
        *prompt_warnings(request.prompt, model),
        *adapter_warnings(choice.adapters, cards),
        *offload_warnings(shapes, model, installation.gpu, installation.setup, guided=sampling.guided_steps > 0),
        *face_warnings(inputs.facts.faces, cropped_share(*inputs.image_size, width, height)),
        *clip_count_warnings(num_clip, needed, num_frames, speech),
        *input_warnings(inputs.facts, num_frames),
        *cut_warnings(request, cuts, speech),
        *picture_warnings(inputs.image_size, (width, height), size, model),
    ]
    return Plan(
        job_id=job_id,
        preset=request.preset,
        preview=preset.preview,
        model=model.name,
        width=width,
        height=height,
        speech=speech,
        num_frames=num_frames,
        covered_seconds=float(min(speech.duration_seconds, Fraction(num_frames, FPS))),
        sampling=sampling,
        adapters=choice.adapters,
        base_seed=base_seed,
        clips=tuple(_clips(slots, shapes, costs, base_seed)),
        cuts=tuple(cuts[: slots[-1].chain_index]),
        clips_per_pod=request.clips_per_pod,
        estimate=installation.estimate(shapes, costs, sampling, request),
        warnings=tuple(warnings),
    )


def _cuts(request: Request, samples: Samples | None, speech_frames: int) -> list[Cut]:
    """Return the cuts at which new chains start; empty unless the request has `continuity: cut`."""
    if request.continuity == "chained":
        return []
    if samples is None:
        raise ValueError("the samples of the speech are needed to cut it")
    return find_cuts(
        samples,
        speech_frames,
        shortest_seconds=request.shortest_chain_seconds,
        longest_seconds=request.longest_chain_seconds,
    )


def _slots(
    bounds: list[int], infer_frames: int, num_clip: int | None, transition: Transition
) -> tuple[list[Slot], int]:
    """Return the clips of the chains between the frames `bounds`, and the number of clips that the speech needs."""
    fade_frames = CROSSFADE_FRAMES if transition == "crossfade" else 0
    if fade_frames and infer_frames < MIN_FADING_INFER_FRAMES:
        raise PermanentError(
            f"infer_frames {infer_frames} is too short for a cross-fade: expected at least "
            f"{MIN_FADING_INFER_FRAMES}, or transition cut."
        )
    whole = lay_out(bounds, infer_frames, None, fade_frames)
    slots = whole if num_clip is None else lay_out(bounds, infer_frames, num_clip, fade_frames)
    return slots, len(whole)


def _check_clip_count(num_clip: int, infer_frames: int, max_clips: int) -> None:
    if num_clip > max_clips:
        raise PermanentError(
            f"The job needs {num_clip} clips of {infer_frames} frames: expected at most {max_clips}; "
            "raise infer_frames, shorten the speech, or raise S2V_MAX_CLIPS."
        )


def job_seed(job_id: str) -> int:
    """Return the seed of the first clip for a request without one; it is the same in a retry."""
    return int.from_bytes(hashlib.sha256(job_id.encode()).digest()[:8], "big") % SEED_RANGE


def _clip_shape(width: int, height: int, slot: Slot, sampling: Sampling) -> ClipShape:
    return ClipShape(
        width=width,
        height=height,
        infer_frames=slot.infer_frames,
        with_motion=not slot.starts_chain or sampling.start_from_ref,
        starts_chain=slot.starts_chain,
        ends_chain=slot.ends_chain,
    )


def _clips(slots: list[Slot], shapes: list[ClipShape], costs: list[Cost], base_seed: int) -> Iterator[ClipPlan]:
    """Return the clips of the plan; within a chain every clip continues the previous one."""
    for index, (slot, shape, cost) in enumerate(zip(slots, shapes, costs, strict=True)):
        yield ClipPlan(
            clip_index=index,
            chain_index=slot.chain_index,
            predecessor=None if slot.starts_chain else index - 1,
            successor=None if slot.ends_chain else index + 1,
            infer_frames=slot.infer_frames,
            start_frame=slot.start_frame,
            end_frame=slot.end_frame,
            seed=base_seed + index,
            latent_shape=shape.latent_shape,
            tokens=clip_tokens(shape),
            pflops=cost.pflops,
            fade_in_frames=slot.fade_in_frames,
            fade_out_frames=slot.fade_out_frames,
        )
