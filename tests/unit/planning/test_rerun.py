"""Check plans of reruns: inherited clips, and the work and price of the others."""

from collections.abc import Callable
from typing import Any

import pytest

from s2v_tasks.errors import PermanentError
from s2v_tasks.planning.estimate import load_seconds
from s2v_tasks.planning.installation import Installation
from s2v_tasks.planning.planner import job_seed
from s2v_tasks.planning.rerun import check_from_clip, replan
from s2v_tasks.schemas.catalogue import load_catalogue
from s2v_tasks.schemas.model_card import GpuCard, ModelCard
from s2v_tasks.schemas.plan import InheritedClip, Plan
from s2v_tasks.schemas.request_parsing import parse_request
from tests.unit.planning.conftest import CONFIG, FIELDS, PlanOf, seconds

Rerun = Callable[..., Plan]


@pytest.fixture
def rerun(model_14b: ModelCard, h100: GpuCard) -> Rerun:
    """Plans a rerun; keywords are fields of its request, `before` those of the parent's."""

    def plan(parent: Plan, from_clip: int, before: dict[str, Any] | None = None, **fields: Any) -> Plan:
        asked = FIELDS | {"parent_job_id": parent.job_id, "from_clip": from_clip} | (before or {}) | fields
        installation = Installation(load_catalogue(CONFIG), model_14b, h100, max_clips=240)
        return replan(parent, parse_request(asked), parse_request(FIELDS | (before or {})), "job-2", installation)

    return plan


def test_the_clips_from_the_change_on_are_planned_and_paid(
    plan_of: PlanOf, rerun: Rerun, model_14b: ModelCard, h100: GpuCard
) -> None:
    """Work and price are those of the two changed clips of four, with one load of the weights."""
    parent = plan_of(seconds(20))
    plan = rerun(parent, 2, sample_steps=15, clips_per_pod=4)
    assert plan.clips[:2] == parent.clips[:2]
    assert plan.estimate.pflops == pytest.approx(sum(clip.pflops for clip in plan.clips[2:]))
    assert plan.clips[2].pflops == pytest.approx(parent.clips[2].pflops / 2, rel=0.05)
    assert (plan.job_id, plan.preset, plan.sampling.sample_steps, plan.clips_per_pod) == ("job-2", "balanced", 15, 4)
    apart = rerun(parent, 2, sample_steps=15).estimate
    assert apart.gpu_seconds - plan.estimate.gpu_seconds == pytest.approx(load_seconds(h100, model_14b))
    assert apart.longest_chain_seconds == apart.gpu_seconds
    assert plan.estimate.worst_case_gpu_seconds is None
    assert rerun(parent, 2, step_cache="fast").estimate.peak_gpu_memory_gib > plan.estimate.peak_gpu_memory_gib
    assert rerun(parent, 2, quality="gate").estimate.worst_case_gpu_seconds > apart.gpu_seconds


def test_a_rerun_without_guidance_needs_the_memory_of_one_branch(plan_of: PlanOf, rerun: Rerun) -> None:
    """The peak is that of the parent, which had no guidance either, and lower than with guidance."""
    unguided: dict[str, Any] = {"sample_guide_scale": 1.0}
    parent = plan_of(seconds(20), **unguided)
    plan = rerun(parent, 0, unguided)
    assert plan.sampling.guided_steps == 0
    assert plan.estimate.peak_gpu_memory_gib == parent.estimate.peak_gpu_memory_gib
    guided = rerun(plan_of(seconds(20)), 0)
    assert plan.estimate.peak_gpu_memory_gib < guided.estimate.peak_gpu_memory_gib


@pytest.mark.parametrize(
    ("before", "after", "seeds"),
    [
        ({"base_seed": 7}, {}, [7, 8, 9]),
        ({"base_seed": 7}, {"base_seed": 40}, [7, 41, 42]),
        ({"base_seed": 7}, {"base_seed": -1}, [7, job_seed("job-2") + 1, job_seed("job-2") + 2]),
        ({}, {}, [job_seed("job-1"), job_seed("job-1") + 1, job_seed("job-1") + 2]),
        ({}, {"base_seed": 0}, [job_seed("job-1"), 1, 2]),
    ],
)
def test_another_seed_is_that_of_the_rendered_clips(
    plan_of: PlanOf, rerun: Rerun, before: dict[str, Any], after: dict[str, Any], seeds: list[int]
) -> None:
    """A repeated or omitted seed keeps the parent's seeds; a new one counts from the first clip on."""
    plan = rerun(plan_of(seconds(15), **before), 1, before, **after)
    assert [clip.seed for clip in plan.clips] == seeds
    assert plan.base_seed == (seeds[0] if not after else seeds[1] - 1)


def test_seeds_that_retakes_gave_a_clip_stay_without_another_seed(plan_of: PlanOf, rerun: Rerun) -> None:
    """A clip keeps the seed of its retake, unless the rerun has another seed."""
    parent = plan_of(seconds(15), base_seed=7)
    changed = parent.clips[1].model_copy(update={"seed": 99})
    parent = parent.model_copy(update={"clips": (parent.clips[0], changed, parent.clips[2])})
    assert [clip.seed for clip in rerun(parent, 1, {"base_seed": 7}).clips] == [7, 99, 9]


def test_a_rerun_of_a_rerun_inherits_from_its_parent_alone(plan_of: PlanOf, rerun: Rerun) -> None:
    """All clips before the change come from the parent; memory and price count from the first rendered clip on."""
    whole = plan_of(seconds(20))
    inherited = tuple(
        InheritedClip(clip_index=index, fingerprint=f"f{index}", source_job_id="job-0", source_manifest_key="m.json")
        for index in range(3)
    )
    parent = whole.model_copy(update={"inherited": inherited})
    plan = rerun(parent, 1)
    assert plan.inherited == ()
    assert plan.estimate == rerun(whole, 1).estimate
    assert rerun(whole, 0).estimate.peak_gpu_memory_gib == whole.estimate.peak_gpu_memory_gib


def test_starting_from_the_picture_is_counted_where_the_preset_is_another(plan_of: PlanOf, rerun: Rerun) -> None:
    """The cost follows the rerun's own sampling: a clip with motion tokens costs more."""
    parent = plan_of(seconds(5))
    plain, motion = (rerun(parent, 0, preset="high", start_from_ref=start) for start in (False, True))
    assert motion.clips[0].pflops > 1.05 * plain.clips[0].pflops


def test_another_preset_gives_its_sampling_for_the_size_of_the_video(plan_of: PlanOf, rerun: Rerun) -> None:
    """The shift is that of the existing frames; the mark of a preview follows the preset, and other warnings stay."""
    parent = plan_of(seconds(12), preset="preview", num_clip=1)
    assert [warning.partition(":")[0] for warning in parent.warnings] == ["Preview quality", "This is a preview"]
    plan = rerun(parent, 0, preset="high", num_clip=1)
    assert (plan.preset, plan.preview) == ("high", False)
    assert (plan.sampling.sample_steps, plan.sampling.sample_shift) == (40, 3.0)
    assert [warning.partition(":")[0] for warning in plan.warnings] == ["This is a preview"]
    again = rerun(parent, 0, {"preset": "preview"}, num_clip=1, base_seed=3)
    assert again.preview
    assert [warning.partition(":")[0] for warning in again.warnings] == ["Preview quality", "This is a preview"]
    assert "s2v rerun job-2 " in again.warnings[0]
    long = rerun(parent, 0, preset="high", num_clip=1, prompt="人" * 700)
    assert [warning.partition(":")[0] for warning in long.warnings] == [
        "The prompt may be too long",
        "This is a preview",
    ]
    assert "too long" not in rerun(long, 0, preset="high", num_clip=1).warnings[0]
    large = plan_of(seconds(5), size="1024*704", image_size=(2048, 1408))
    assert rerun(large, 0, preset="high", size="1024*704").sampling.sample_shift == 5.0


def test_a_clip_that_the_parent_has_not_is_refused(plan_of: PlanOf) -> None:
    """The message has the bounds, and the last clip may be rendered again."""
    parent = plan_of(seconds(15))
    check_from_clip(parent, 2)
    with pytest.raises(PermanentError, match="from_clip 3: expected 0 to 2, the clips of job job-1"):
        check_from_clip(parent, 3)
