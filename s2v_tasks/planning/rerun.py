"""Make the plan of a rerun: frames and size of the parent, with another sampling or seed from a given clip on."""

from collections.abc import Mapping

from s2v_tasks.errors import PermanentError
from s2v_tasks.planning.clips import clips_of_processes
from s2v_tasks.planning.memory import ONE_GPU, RenderSetup, peak_memory_gib, plan_shapes
from s2v_tasks.planning.planner import NO_ADAPTERS, clip_costs, estimate_clips, job_seed, with_retakes
from s2v_tasks.planning.sampling import change_sampling, choose_sampling, planned_adapters
from s2v_tasks.planning.warnings import PREVIEW_MARK, preview_warning
from s2v_tasks.schemas.model_card import AdapterCard, GpuCard, ModelCard
from s2v_tasks.schemas.plan import Plan, Sampling
from s2v_tasks.schemas.preset import Preset, find_preset
from s2v_tasks.schemas.request import Request


def check_from_clip(parent: Plan, from_clip: int) -> None:
    """Raise PermanentError if `from_clip` is beyond the plan of the parent."""
    if from_clip >= parent.num_clip:
        raise PermanentError(
            f"from_clip {from_clip}: expected 0 to {parent.num_clip - 1}, the clips of job {parent.job_id}."
        )


def replan(
    parent: Plan,
    request: Request,
    parent_request: Request,
    *,
    job_id: str,
    presets: dict[str, Preset],
    adapters: Mapping[str, AdapterCard] = NO_ADAPTERS,
    model: ModelCard,
    gpu: GpuCard,
    setup: RenderSetup = ONE_GPU,
) -> Plan:
    """Return the parent's plan with the changes of `request` from `request.from_clip` on; estimate only these clips.

    Omitted sampling fields come from the preset if it differs from the preset of the parent, else from the parent. A
    repeated seed means the seeds of the parent.
    """
    from_clip = request.from_clip or 0
    if request.preset == parent.preset:
        sampling, is_preview = change_sampling(parent.sampling, request), parent.preview
        chosen = parent.adapters if request.adapters is None else planned_adapters(request.adapters, adapters)
    else:
        preset = find_preset(presets, request.preset)
        choice = choose_sampling(request, preset, adapters, parent.width * parent.height)
        sampling, chosen, is_preview = choice.sampling, choice.adapters, preset.preview
    setup = setup.for_sampling(sampling)
    base_seed = parent.base_seed
    if request.base_seed != parent_request.base_seed:
        base_seed = job_seed(job_id) if request.base_seed == -1 else request.base_seed
    rendered = parent.clips[from_clip:]
    shapes = plan_shapes(parent.model_copy(update={"sampling": sampling, "inherited": ()}))[from_clip:]
    guided = sampling.guided_steps > 0
    peak_gib = max(peak_memory_gib(shape, model, gpu, guided=guided, setup=setup) for shape in shapes)
    costs = clip_costs(shapes, model, sampling)
    clips = [
        clip.model_copy(
            update={
                "pflops": cost.pflops,
                "seed": clip.seed if base_seed == parent.base_seed else base_seed + clip.clip_index,
            }
        )
        for clip, cost in zip(rendered, costs, strict=True)
    ]
    processes = clips_of_processes([clip.chain_index for clip in rendered], request.clips_per_pod)
    estimate = estimate_clips(shapes, costs, processes, model, gpu, peak_gib=peak_gib)
    if request.quality == "gate":
        estimate = with_retakes(estimate, costs, gpu, request.max_retakes)
    return parent.model_copy(
        update={
            "job_id": job_id,
            "preset": request.preset,
            "preview": is_preview,
            "model": model.name,
            "sampling": sampling,
            "adapters": chosen,
            "base_seed": base_seed,
            "clips": (*parent.clips[:from_clip], *clips),
            "clips_per_pod": request.clips_per_pod,
            "estimate": estimate,
            "inherited": (),
            "warnings": _warnings(parent, job_id, sampling, is_preview=is_preview),
        }
    )


def _warnings(parent: Plan, job_id: str, sampling: Sampling, *, is_preview: bool) -> tuple[str, ...]:
    """Return the warnings of the parent, with the mark of a preview only if the rerun is one."""
    kept = tuple(warning for warning in parent.warnings if not warning.startswith(PREVIEW_MARK))
    return (preview_warning(job_id, sampling), *kept) if is_preview else kept
