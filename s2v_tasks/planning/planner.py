"""Make the plan of a job from the request, its preset and its inputs, before any GPU time is spent."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction

from s2v_tasks.errors import PermanentError
from s2v_tasks.planning.chains import Samples, find_cuts
from s2v_tasks.planning.clips import Slot, clips_of_processes, frames_of_speech, lay_out
from s2v_tasks.planning.estimate import (
    ClipShape,
    Cost,
    clip_cost,
    clip_tokens,
    compute_seconds,
    load_seconds,
    vae_seconds,
)
from s2v_tasks.planning.memory import ONE_GPU, RenderSetup, peak_memory_gib
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
)
from s2v_tasks.schemas.model_card import AdapterCard, GpuCard, ModelCard
from s2v_tasks.schemas.plan import FPS, ClipPlan, Cut, Estimate, InputFacts, Plan, PlannedAdapter, Sampling, SpeechFacts
from s2v_tasks.schemas.preset import Preset, find_preset
from s2v_tasks.schemas.request import Request

NO_ADAPTERS: Mapping[str, AdapterCard] = {}
SEED_RANGE = 2**63 - 1000  # leaves room for seed + clip_index below 2**63
CROSSFADE_FRAMES = 4  # 250 ms: as long as a chain holds its first picture (ADR 4, ADR 7)
MIN_FADING_INFER_FRAMES = 20  # clips of 16 frames cannot share: one clip would only fade out


@dataclass(frozen=True)
class _Choices:
    """The fields of the request, filled in from the preset."""

    num_clip: int | None
    infer_frames: int
    size: str
    sampling: Sampling
    adapters: tuple[PlannedAdapter, ...]


def make_plan(
    request: Request,
    *,
    job_id: str,
    presets: dict[str, Preset],
    speech: SpeechFacts,
    image_size: tuple[int, int],
    model: ModelCard,
    gpu: GpuCard,
    setup: RenderSetup = ONE_GPU,
    max_clips: int,
    samples: Samples | None = None,
    inputs: InputFacts | None = None,
    adapters: Mapping[str, AdapterCard] = NO_ADAPTERS,
) -> Plan:
    """Return the plan of `job_id` (ADR 3). `image_size` is (width, height) in pixels as the picture is shown.

    `samples` `[n]` is the speech at 16 kHz; a request with continuity cut needs it (ADR 7). `inputs` gives
    warnings only.

    Raises PermanentError for an unknown preset, an empty speech, more than `max_clips` clips, or a picture that is
    too long or too wide.
    """
    preset = find_preset(presets, request.preset)
    choices = _choices(request, preset, adapters)
    setup = setup.for_sampling(choices.sampling)
    speech_frames = frames_of_speech(speech)
    cuts = _cuts(request, samples, speech_frames)
    slots, needed = _slots(request, choices, cuts, speech_frames)
    _check_clip_count(len(slots), choices.infer_frames, max_clips)
    num_frames = slots[-1].end_frame
    width, height = plan_size(*image_size, choices.size)
    base_seed = job_seed(job_id) if request.base_seed == -1 else request.base_seed
    shapes = [_clip_shape(width, height, slot, choices.sampling) for slot in slots]
    costs = clip_costs(shapes, model, choices.sampling)
    processes = clips_of_processes([slot.chain_index for slot in slots], request.clips_per_pod)
    guided = choices.sampling.guided_steps > 0
    peak_gib = max(peak_memory_gib(shape, model, gpu, guided=guided, setup=setup) for shape in shapes)
    estimate = estimate_clips(shapes, costs, processes, model, gpu, peak_gib=peak_gib)
    if request.quality == "gate":
        estimate = with_retakes(estimate, costs, gpu, request.max_retakes)
    warnings = [
        *([preview_warning(job_id, choices.sampling)] if preset.preview else []),
        *adapter_warnings(choices.adapters, adapters),
        *offload_warnings(shapes, model, gpu, setup, guided=guided),
        *face_warnings(inputs.faces if inputs else None, cropped_share(*image_size, width, height)),
        *clip_count_warnings(choices.num_clip, needed, num_frames, speech),
        *input_warnings(inputs or InputFacts(), num_frames),
        *cut_warnings(request, cuts, speech),
        *picture_warnings(image_size, (width, height), choices.size, model),
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
        sampling=choices.sampling,
        adapters=choices.adapters,
        base_seed=base_seed,
        clips=tuple(_clips(slots, shapes, costs, base_seed)),
        cuts=tuple(cuts[: slots[-1].chain_index]),
        clips_per_pod=request.clips_per_pod,
        estimate=estimate,
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


def _slots(request: Request, choices: _Choices, cuts: list[Cut], speech_frames: int) -> tuple[list[Slot], int]:
    """Return the clips of the video, and the number of clips that the whole speech needs."""
    fade_frames = CROSSFADE_FRAMES if request.transition == "crossfade" else 0
    if fade_frames and choices.infer_frames < MIN_FADING_INFER_FRAMES:
        raise PermanentError(
            f"infer_frames {choices.infer_frames} is too short for a cross-fade: expected at least "
            f"{MIN_FADING_INFER_FRAMES}, or transition cut."
        )
    bounds = [0, *(cut.frame for cut in cuts), speech_frames]
    whole = lay_out(bounds, choices.infer_frames, None, fade_frames)
    if choices.num_clip is None:
        return whole, len(whole)
    return lay_out(bounds, choices.infer_frames, choices.num_clip, fade_frames), len(whole)


def _choices(request: Request, preset: Preset, cards: Mapping[str, AdapterCard]) -> _Choices:
    defaults = preset.model_dump()
    said = {name: value for name, value in request.model_dump().items() if name in defaults and value is not None}
    chosen = defaults | said
    choice = choose_sampling(request, preset, cards)
    return _Choices(
        num_clip=chosen["num_clip"],
        infer_frames=chosen["infer_frames"],
        size=chosen["size"],
        sampling=choice.sampling,
        adapters=choice.adapters,
    )


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


def clip_costs(shapes: list[ClipShape], model: ModelCard, sampling: Sampling) -> list[Cost]:
    """Return the operations of each clip."""
    return [
        clip_cost(shape, model, sample_steps=sampling.sample_steps, guided_steps=sampling.guided_steps)
        for shape in shapes
    ]


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


def estimate_clips(
    shapes: list[ClipShape],
    costs: list[Cost],
    processes: list[range],
    model: ModelCard,
    gpu: GpuCard,
    *,
    peak_gib: float,
) -> Estimate:
    """Sum up the cost of clips. `processes`: positions of the clips of each process; the first may continue a chain.

    `peak_gib` is the largest memory of one of them.
    """
    chain_seconds: list[float] = []
    for clips in processes:
        seconds = load_seconds(gpu, model) + sum(compute_seconds(costs[index], gpu) for index in clips)
        if not chain_seconds or shapes[clips[0]].starts_chain:
            chain_seconds.append(0.0)
        chain_seconds[-1] += seconds
    return Estimate(
        pflops=sum(cost.pflops for cost in costs),
        gpu=gpu.name,
        gpu_seconds=sum(chain_seconds),
        longest_chain_seconds=max(chain_seconds),
        cost=sum(chain_seconds) / 3600 * gpu.cost_per_hour,
        currency=gpu.currency,
        peak_gpu_memory_gib=peak_gib,
        vae_share=sum(vae_seconds(cost, gpu) for cost in costs) / sum(compute_seconds(cost, gpu) for cost in costs),
    )


def with_retakes(estimate: Estimate, costs: list[Cost], gpu: GpuCard, max_retakes: int) -> Estimate:
    """Add the worst case: every clip of `costs` is rendered `max_retakes` times more, by the same processes."""
    seconds = estimate.gpu_seconds + max_retakes * sum(compute_seconds(cost, gpu) for cost in costs)
    worst = {"worst_case_gpu_seconds": seconds, "worst_case_cost": seconds / 3600 * gpu.cost_per_hour}
    return estimate.model_copy(update=worst)
