"""Make the plan of a rerun: frames and size of the parent, with another sampling or seed from a given clip on."""

from s2v_tasks.errors import PermanentError
from s2v_tasks.planning.installation import Installation
from s2v_tasks.planning.memory import plan_shapes
from s2v_tasks.planning.planner import job_seed
from s2v_tasks.planning.sampling import Choice, change_sampling, choose_sampling, planned_adapters
from s2v_tasks.planning.warnings import PREVIEW_MARK, PROMPT_MARK, preview_warning, prompt_warnings
from s2v_tasks.schemas.catalogue import Catalogue
from s2v_tasks.schemas.model_card import ModelCard
from s2v_tasks.schemas.plan import Plan
from s2v_tasks.schemas.preset import find_preset
from s2v_tasks.schemas.request import Request


def check_from_clip(parent: Plan, from_clip: int) -> None:
    """Raise PermanentError if `from_clip` is beyond the plan of the parent."""
    if from_clip >= parent.num_clip:
        raise PermanentError(
            f"from_clip {from_clip}: expected 0 to {parent.num_clip - 1}, the clips of job {parent.job_id}."
        )


def replan(parent: Plan, request: Request, parent_request: Request, job_id: str, installation: Installation) -> Plan:
    """Return the parent's plan with the changes of `request` from `request.from_clip` on; estimate only these clips.

    Omitted sampling fields come from the preset if it differs from the preset of the parent, else from the parent. A
    repeated seed means the seeds of the parent.
    """
    from_clip = request.from_clip or 0
    choice, is_preview = _choice(parent, request, installation.catalogue)
    sampling = choice.sampling
    base_seed = parent.base_seed
    if request.base_seed != parent_request.base_seed:
        base_seed = job_seed(job_id) if request.base_seed == -1 else request.base_seed
    shapes = plan_shapes(parent.model_copy(update={"sampling": sampling, "inherited": ()}))[from_clip:]
    costs = installation.costs(shapes, sampling)
    clips = [
        clip.model_copy(
            update={
                "pflops": cost.pflops,
                "seed": clip.seed if base_seed == parent.base_seed else base_seed + clip.clip_index,
            }
        )
        for clip, cost in zip(parent.clips[from_clip:], costs, strict=True)
    ]
    return parent.model_copy(
        update={
            "job_id": job_id,
            "preset": request.preset,
            "preview": is_preview,
            "model": installation.model.name,
            "sampling": sampling,
            "adapters": choice.adapters,
            "base_seed": base_seed,
            "clips": (*parent.clips[:from_clip], *clips),
            "clips_per_pod": request.clips_per_pod,
            "estimate": installation.estimate(shapes, costs, sampling, request),
            "inherited": (),
            "warnings": _warnings(parent, request, job_id, choice, installation.model, is_preview=is_preview),
        }
    )


def _choice(parent: Plan, request: Request, catalogue: Catalogue) -> tuple[Choice, bool]:
    """Return sampling and adapters of the rerun, and True if it is a preview."""
    if request.preset != parent.preset:
        preset = find_preset(catalogue.presets, request.preset)
        return choose_sampling(request, preset, catalogue.adapters, parent.width * parent.height), preset.preview
    adapters = parent.adapters
    if request.adapters is not None:
        adapters = planned_adapters(request.adapters, catalogue.adapters)
    return Choice(change_sampling(parent.sampling, request), adapters), parent.preview


def _warnings(
    parent: Plan, request: Request, job_id: str, choice: Choice, model: ModelCard, *, is_preview: bool
) -> tuple[str, ...]:
    """Return the warnings of the rerun: its own about preview and prompt, and the others of the parent."""
    return (
        *([preview_warning(job_id, choice.sampling)] if is_preview else []),
        *prompt_warnings(request.prompt, model),
        *(warning for warning in parent.warnings if not warning.startswith((PREVIEW_MARK, PROMPT_MARK))),
    )
