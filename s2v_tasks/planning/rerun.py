"""The plan of a rerun: the parent's frames and size, with another sampling or other seeds from some clip on."""

from s2v_tasks.errors import PermanentError
from s2v_tasks.planning.clips import turns
from s2v_tasks.planning.estimate import clip_cost
from s2v_tasks.planning.memory import ONE_GPU, RenderSetup, peak_memory_gib, plan_shapes
from s2v_tasks.planning.planner import estimate_clips, job_seed
from s2v_tasks.schemas.model_card import GpuCard, ModelCard
from s2v_tasks.schemas.plan import Plan
from s2v_tasks.schemas.request import Request

_SAMPLING = ("sample_steps", "sample_guide_scale", "sample_shift", "sample_solver")


def check_from_clip(parent: Plan, from_clip: int) -> None:
    """PermanentError when `from_clip` is beyond the plan of the parent."""
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
    model: ModelCard,
    gpu: GpuCard,
    setup: RenderSetup = ONE_GPU,
) -> Plan:
    """The parent's plan as `request` changes it from `request.from_clip` on; what is estimated are those clips.

    A field of the sampling that the request leaves out, and a seed that it repeats, stay the parent's.
    """
    from_clip = request.from_clip or 0
    changed = {name: value for name in _SAMPLING if (value := getattr(request, name)) is not None}
    sampling = parent.sampling.model_copy(update=changed)
    base_seed = parent.base_seed
    if request.base_seed != parent_request.base_seed:
        base_seed = job_seed(job_id) if request.base_seed == -1 else request.base_seed
    rendered = parent.clips[from_clip:]
    shapes = plan_shapes(parent.model_copy(update={"sampling": sampling, "inherited": ()}))[from_clip:]
    guided = sampling.sample_guide_scale > 1
    peak_gib = max(peak_memory_gib(shape, model, gpu, guided=guided, setup=setup) for shape in shapes)
    costs = [clip_cost(shape, model, sample_steps=sampling.sample_steps, guided=guided) for shape in shapes]
    clips = [
        clip.model_copy(
            update={
                "pflops": cost.pflops,
                "seed": clip.seed if base_seed == parent.base_seed else base_seed + clip.clip_index,
            }
        )
        for clip, cost in zip(rendered, costs, strict=True)
    ]
    processes = turns([clip.chain_index for clip in rendered], request.clips_per_pod)
    return parent.model_copy(
        update={
            "job_id": job_id,
            "model": model.name,
            "sampling": sampling,
            "base_seed": base_seed,
            "clips": (*parent.clips[:from_clip], *clips),
            "clips_per_pod": request.clips_per_pod,
            "estimate": estimate_clips(shapes, costs, processes, model, gpu, peak_gib=peak_gib),
            "inherited": (),
        }
    )
