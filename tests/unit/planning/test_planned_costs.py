"""Check the cost estimates of whole plans."""

from typing import Any

import pytest

from s2v_tasks.planning.estimate import load_seconds
from tests.unit.planning.conftest import seconds


def test_guidance_of_1_halves_the_work(plan_of: Any) -> None:
    """A guidance scale of 1 needs one branch per step instead of two."""
    guided, unguided = plan_of(seconds(5), sample_guide_scale=1.1), plan_of(seconds(5), sample_guide_scale=1)
    assert unguided.estimate.pflops == pytest.approx(guided.estimate.pflops / 2, rel=0.02)


def test_steps_without_guidance_cost_one_branch(plan_of: Any) -> None:
    """Guidance in 10 of 30 steps costs two thirds of guidance in all steps."""
    everywhere, partly = plan_of(seconds(5)), plan_of(seconds(5), guide_steps=[0, 10])
    assert (everywhere.sampling.guided_steps, partly.sampling.guided_steps) == (30, 10)
    transformer = [plan.estimate.pflops * 1e15 - 1.1e15 for plan in (everywhere, partly)]
    assert transformer[1] / transformer[0] == pytest.approx(2 / 3, rel=0.02)


def test_the_vae_is_a_large_part_of_a_preview(plan_of: Any) -> None:
    """At 4 steps without guidance the VAE takes 22 % of the time, at 30 guided steps less than 3 %."""
    preview, balanced = plan_of(seconds(10), preset="preview"), plan_of(seconds(10))
    assert preview.preview
    assert round(preview.estimate.vae_share, 2) == 0.22
    assert balanced.estimate.vae_share < 0.03
    assert preview.estimate.gpu_seconds < balanced.estimate.gpu_seconds / 5


def test_estimate_sums_the_clips(plan_of: Any, h100: Any) -> None:
    """The estimate is the sum of the clips on the configured GPU, and its price follows from the seconds."""
    plan = plan_of(seconds(30))
    assert plan.estimate.pflops == pytest.approx(sum(clip.pflops for clip in plan.clips))
    assert plan.estimate.cost == pytest.approx(plan.estimate.gpu_seconds / 3600 * h100.cost_per_hour)
    assert (plan.estimate.gpu, plan.estimate.currency) == ("h100-sxm", "USD")


def test_clips_that_share_a_process_load_the_model_once(plan_of: Any, model_14b: Any, h100: Any) -> None:
    """Two clips in one process cost one load less; the time of the longest chain includes all its loads."""
    assert (plan_of(seconds(15)).clips_per_pod, plan_of(seconds(15), clips_per_pod=2).clips_per_pod) == (1, 2)
    apart, together = plan_of(seconds(15)).estimate, plan_of(seconds(15), clips_per_pod=2).estimate
    assert apart.gpu_seconds - together.gpu_seconds == pytest.approx(load_seconds(h100, model_14b))
    assert apart.longest_chain_seconds == apart.gpu_seconds


def test_chains_need_no_longer_than_the_longest(plan_of: Any, sentences: Any) -> None:
    """Three chains of about equal length take a third of their GPU-seconds when each has a GPU."""
    estimate = plan_of(seconds(20), samples=sentences, continuity="cut", min_chain_seconds=4).estimate
    assert estimate.longest_chain_seconds == pytest.approx(estimate.gpu_seconds / 3, rel=0.1)


def test_peak_memory_is_that_of_the_largest_clip(plan_of: Any) -> None:
    """Later clips, with motion tokens, need more memory than the first; a preview of the first alone needs less."""
    whole, first = plan_of(seconds(10)).estimate, plan_of(seconds(10), num_clip=1).estimate
    assert whole.peak_gpu_memory_gib > first.peak_gpu_memory_gib


def test_only_retakes_have_a_worst_case(plan_of: Any, model_14b: Any, h100: Any) -> None:
    """With the gate each clip may be rendered `max_retakes` times more, without another load of the weights."""
    for quality in ("off", "report"):
        assert plan_of(seconds(10), quality=quality).estimate.worst_case_gpu_seconds is None
    estimate = plan_of(seconds(10), quality="gate", max_retakes=3, clips_per_pod=2).estimate
    computing = estimate.gpu_seconds - load_seconds(h100, model_14b)
    assert estimate.worst_case_gpu_seconds == pytest.approx(estimate.gpu_seconds + 3 * computing)
    assert estimate.worst_case_cost == pytest.approx(estimate.worst_case_gpu_seconds / 3600 * h100.cost_per_hour)
