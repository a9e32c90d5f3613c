"""The plan of a job: what a request, its preset and its inputs decide, written down before anything is spent."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

from s2v_tasks.errors import PermanentError
from s2v_tasks.planning.clips import clips_needed, frame_ranges, split
from s2v_tasks.planning.estimate import ClipShape, Cost, clip_cost, clip_tokens, gpu_seconds, peak_memory_gib
from s2v_tasks.planning.resolution import plan_size
from s2v_tasks.planning.timeline import frames_of_speech
from s2v_tasks.planning.warnings import clip_count_warnings, memory_warnings, picture_warnings
from s2v_tasks.schemas.model_card import GpuCard, ModelCard
from s2v_tasks.schemas.plan import FPS, ClipPlan, Estimate, Plan, Sampling, SpeechFacts
from s2v_tasks.schemas.preset import Preset, find_preset
from s2v_tasks.schemas.request import Request
from s2v_tasks.schemas.size import parse_size

LARGE_AREA = 1024 * 704
SHIFT_BELOW_LARGE_AREA, SHIFT_FROM_LARGE_AREA = 3.0, 5.0
SEED_RANGE = 2**63 - 1000  # leaves room for seed + clip_index below 2**63


@dataclass(frozen=True)
class _Choices:
    """The fields of the request, filled in from the preset."""

    num_clip: int | None
    infer_frames: int
    size: str
    sampling: Sampling


def make_plan(
    request: Request,
    *,
    job_id: str,
    presets: dict[str, Preset],
    speech: SpeechFacts,
    image_size: tuple[int, int],
    model: ModelCard,
    gpu: GpuCard,
    max_clips: int,
) -> Plan:
    """The plan of `job_id` (ADR 3). `image_size` is (width, height) in pixels as the picture is shown.

    Raises PermanentError for an unknown preset, an empty speech, more than `max_clips` clips, or a picture that is
    too long or too wide.
    """
    choices = _choices(request, find_preset(presets, request.preset))
    speech_frames = frames_of_speech(speech)
    infer_frames = split(speech_frames, choices.infer_frames, choices.num_clip)
    _check_clip_count(len(infer_frames), choices.infer_frames, max_clips)
    num_frames = min(speech_frames, sum(infer_frames))
    width, height = plan_size(*image_size, choices.size)
    base_seed = _job_seed(job_id) if request.base_seed == -1 else request.base_seed
    shapes = _clip_shapes(width, height, infer_frames, choices.sampling)
    costs = [_cost(shape, model, choices.sampling) for shape in shapes]
    estimate = _estimate(shapes, costs, model, gpu)
    warnings = [
        *clip_count_warnings(choices.num_clip, clips_needed(speech_frames, choices.infer_frames), num_frames, speech),
        *picture_warnings(image_size, (width, height), choices.size, model),
        *memory_warnings(estimate, gpu),
    ]
    return Plan(
        job_id=job_id,
        preset=request.preset,
        model=model.name,
        width=width,
        height=height,
        speech=speech,
        num_frames=num_frames,
        covered_seconds=float(min(speech.duration_seconds, Fraction(num_frames, FPS))),
        sampling=choices.sampling,
        base_seed=base_seed,
        clips=tuple(_clips(shapes, costs, num_frames, base_seed)),
        estimate=estimate,
        warnings=tuple(warnings),
    )


def _choices(request: Request, preset: Preset) -> _Choices:
    defaults = preset.model_dump()
    said = {name: value for name, value in request.model_dump().items() if name in defaults and value is not None}
    chosen = defaults | said
    return _Choices(
        num_clip=chosen["num_clip"],
        infer_frames=chosen["infer_frames"],
        size=chosen["size"],
        sampling=Sampling(
            sample_steps=chosen["sample_steps"],
            sample_guide_scale=chosen["sample_guide_scale"],
            sample_shift=_sample_shift(request, preset),
            sample_solver=chosen["sample_solver"],
            start_from_ref=request.start_from_ref,
        ),
    )


def _sample_shift(request: Request, preset: Preset) -> float:
    """The shift that the request gives, else the one that fits its size, else the preset's."""
    if request.sample_shift is not None:
        return request.sample_shift
    if request.size is None:
        return preset.sample_shift
    width, height = parse_size(request.size)
    return SHIFT_BELOW_LARGE_AREA if width * height < LARGE_AREA else SHIFT_FROM_LARGE_AREA


def _check_clip_count(num_clip: int, infer_frames: int, max_clips: int) -> None:
    if num_clip > max_clips:
        raise PermanentError(
            f"The job needs {num_clip} clips of {infer_frames} frames: expected at most {max_clips}; "
            "raise infer_frames, shorten the speech, or raise S2V_MAX_CLIPS."
        )


def _job_seed(job_id: str) -> int:
    return int.from_bytes(hashlib.sha256(job_id.encode()).digest()[:8], "big") % SEED_RANGE


def _clip_shapes(width: int, height: int, infer_frames: list[int], sampling: Sampling) -> list[ClipShape]:
    last = len(infer_frames) - 1
    return [
        ClipShape(
            width=width,
            height=height,
            infer_frames=frames,
            with_motion=index > 0 or sampling.start_from_ref,
            starts_chain=index == 0,
            ends_chain=index == last,
        )
        for index, frames in enumerate(infer_frames)
    ]


def _cost(shape: ClipShape, model: ModelCard, sampling: Sampling) -> Cost:
    guided = sampling.sample_guide_scale > 1
    return clip_cost(shape, model, sample_steps=sampling.sample_steps, guided=guided)


def _clips(shapes: list[ClipShape], costs: list[Cost], num_frames: int, base_seed: int) -> Iterator[ClipPlan]:
    """One chain: every clip continues the one before it."""
    ranges = frame_ranges([shape.infer_frames for shape in shapes], num_frames)
    for index, (shape, cost, (start_frame, end_frame)) in enumerate(zip(shapes, costs, ranges, strict=True)):
        yield ClipPlan(
            clip_index=index,
            chain_index=0,
            predecessor=None if shape.starts_chain else index - 1,
            successor=None if shape.ends_chain else index + 1,
            infer_frames=shape.infer_frames,
            start_frame=start_frame,
            end_frame=end_frame,
            seed=base_seed + index,
            latent_shape=shape.latent_shape,
            tokens=clip_tokens(shape),
            pflops=cost.pflops,
        )


def _estimate(shapes: list[ClipShape], costs: list[Cost], model: ModelCard, gpu: GpuCard) -> Estimate:
    seconds = sum(gpu_seconds(cost, gpu, model) for cost in costs)
    return Estimate(
        pflops=sum(cost.pflops for cost in costs),
        gpu=gpu.name,
        gpu_seconds=seconds,
        cost=seconds / 3600 * gpu.cost_per_hour,
        currency=gpu.currency,
        peak_gpu_memory_gib=max(peak_memory_gib(shape, model) for shape in shapes),
    )
