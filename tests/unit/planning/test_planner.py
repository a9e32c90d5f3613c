"""Check whole plans of one chain: clips, sampling and seeds."""

import math
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s2v_tasks.errors import PermanentError
from s2v_tasks.planning.clips import frames_of_speech
from s2v_tasks.planning.planner import job_seed
from s2v_tasks.schemas.plan import Plan, SpeechFacts
from tests.unit.planning.conftest import seconds


def frames(plan: Plan) -> list[int]:
    return [clip.infer_frames for clip in plan.clips]


@pytest.mark.parametrize(
    ("num_samples", "sample_rate", "expected"),
    [
        (80000, 16000, 80),
        (80001, 16000, 81),
        (1, 44100, 1),
        (44100, 44100, 16),
        (869_193, 44100, 316),
        (490_400, 8000, 981),
    ],
)
def test_frames_of_speech_are_exact(num_samples: int, sample_rate: int, expected: int) -> None:
    """One sample more than a whole frame needs one frame more, at any sample rate, without rounding."""
    assert frames_of_speech(SpeechFacts(num_samples=num_samples, sample_rate=sample_rate)) == expected


@pytest.mark.parametrize(
    ("duration", "num_frames", "expected"),
    [
        (5.0, 80, [80]),
        (5.02, 81, [44, 40]),
        (10.0, 160, [80, 80]),
        (19.73, 316, [80, 80, 80, 76]),
        (60.0, 960, [80] * 12),
        (61.3, 981, [80] * 11 + [52, 52]),
        (0.001, 1, [16]),
    ],
)
def test_plan_of_durations(plan_of: Any, duration: float, num_frames: int, expected: list[int]) -> None:
    """The balanced preset makes the fewest 5 s clips, without a silent extra clip and without a lost end."""
    plan = plan_of(seconds(duration))
    assert plan.num_frames == num_frames == plan.clips[-1].end_frame
    assert frames(plan) == expected
    assert plan.warnings == ()


@settings(max_examples=400, deadline=None)
@given(num_samples=st.integers(1, 16000 * 1200), infer_frames=st.sampled_from(range(16, 121, 4)))
def test_plan_covers_any_speech_to_within_one_frame(plan_of: Any, num_samples: int, infer_frames: int) -> None:
    """Delivered frames last as long as the speech and less than one frame longer, in one chain from 0 to the end."""
    plan: Plan = plan_of(num_samples, infer_frames=infer_frames, max_clips=1200)
    assert 0 <= plan.duration_seconds - plan.speech.duration_seconds < Fraction(1, 16)
    assert plan.num_clip == math.ceil(plan.num_frames / infer_frames)
    assert sum(clip.num_frames for clip in plan.clips) == plan.num_frames
    assert [clip.clip_index for clip in plan.clips] == list(range(plan.num_clip))
    assert [clip.predecessor for clip in plan.clips] == [None, *range(plan.num_clip - 1)]
    assert [clip.successor for clip in plan.clips] == [*range(1, plan.num_clip), None]
    assert {clip.chain_index for clip in plan.clips} == {0}
    assert Plan.model_validate_json(plan.model_dump_json()) == plan


def test_num_clip_fewer_is_a_preview(plan_of: Any) -> None:
    """Fewer clips than needed render full clips, and the plan says how many seconds are left out."""
    plan = plan_of(seconds(12.5), num_clip=2)
    assert frames(plan) == [80, 80]
    assert plan.num_frames == 160
    assert plan.warnings == (
        "This is a preview: num_clip 2 covers 10.00 s and leaves out the last 2.50 s of 12.50 s of speech, "
        "which needs 3 clips.",
    )


def test_a_plan_states_what_is_covered_and_the_shape_of_each_clip(plan_of: Any) -> None:
    """The JSON has the covered seconds of speech and the latent shape of every clip."""
    preview = plan_of(10 * 16000, num_clip=1, infer_frames=48)
    assert preview.covered_seconds == 3.0
    whole = plan_of(80_320)
    assert whole.covered_seconds == 5.02
    height, width = whole.height // 8, whole.width // 8
    assert [clip.latent_shape for clip in whole.clips] == [(16, 11, height, width), (16, 10, height, width)]


def test_num_clip_more_is_reduced(plan_of: Any) -> None:
    """More clips than the speech needs are reduced to the needed number, with a warning."""
    plan = plan_of(seconds(5.02), num_clip=9)
    assert frames(plan) == [44, 40]
    assert plan.warnings == ("num_clip 9 is reduced to 2: 5.02 s of speech need only 2.",)


def test_quick_preset_previews_long_speech_and_covers_short_speech(plan_of: Any) -> None:
    """The quick preset is one clip of 3 s at most, and no longer than the speech."""
    assert (frames(plan_of(seconds(9), preset="quick")), plan_of(seconds(9), preset="quick").num_frames) == ([48], 48)
    short = plan_of(seconds(1.5), preset="quick")
    assert (frames(short), short.num_frames, short.warnings) == ([24], 24, ())


def test_max_clips_bounds_the_job(plan_of: Any) -> None:
    """Too many clips fail with the number needed and the remedies; a preview within the bound does not."""
    with pytest.raises(PermanentError, match=r"needs 12 clips of 80 frames.*at most 11.*infer_frames.*S2V_MAX_CLIPS"):
        plan_of(seconds(60), max_clips=11)
    assert plan_of(seconds(60), max_clips=12).num_clip == 12
    assert plan_of(seconds(60), max_clips=11, num_clip=3).num_clip == 3


def test_bad_inputs_are_refused(plan_of: Any) -> None:
    """An empty speech, an unknown preset and a very narrow picture are errors that say what was expected."""
    with pytest.raises(PermanentError, match="0 samples"):
        plan_of(0)
    with pytest.raises(PermanentError, match="preset 'fancy' is unknown: expected one of quick, balanced, high, long"):
        plan_of(1, preset="fancy")
    with pytest.raises(PermanentError, match="crop the picture"):
        plan_of(1, image_size=(5000, 100))


def test_request_overrides_the_preset_field_by_field(plan_of: Any) -> None:
    """Omitted fields of the request come from the preset; a given field replaces only that field."""
    plan = plan_of(seconds(8), preset="high", sample_steps=7, start_from_ref=True, sample_solver="dpm++")
    assert plan.sampling.model_dump() == {
        "sample_steps": 7,
        "sample_guide_scale": 5.0,
        "sample_shift": 5.0,
        "sample_solver": "dpm++",
        "start_from_ref": True,
    }
    assert frames(plan) == [64, 64]


@pytest.mark.parametrize(
    ("fields", "shift"),
    [
        ({}, 3.0),
        ({"preset": "high"}, 5.0),
        ({"preset": "high", "size": "480*832"}, 3.0),
        ({"size": "992*704"}, 3.0),
        ({"size": "1024*704"}, 5.0),
        ({"size": "1024*704", "sample_shift": 4.0}, 4.0),
    ],
)
def test_shift_follows_the_size_unless_given(plan_of: Any, fields: dict[str, Any], shift: float) -> None:
    """A given shift has precedence, then the one for a given size, then the preset's."""
    assert plan_of(seconds(1), image_size=(4000, 3000), **fields).sampling.sample_shift == shift


def test_seeds(plan_of: Any) -> None:
    """Clip k uses base_seed + k; without a seed it is derived from the job id, so that a retry repeats it."""
    assert [clip.seed for clip in plan_of(seconds(15), base_seed=7).clips] == [7, 8, 9]
    assert [clip.seed for clip in plan_of(seconds(15), base_seed=0).clips] == [0, 1, 2]
    derived, again = plan_of(seconds(15)), plan_of(seconds(15))
    assert derived.base_seed == again.base_seed
    assert all(0 <= job_seed(f"job-{number}") < 2**63 - 1000 for number in range(20))
    assert 0 <= derived.base_seed < 2**63 - 1000
    assert derived.base_seed != plan_of(seconds(15), job_id="job-2").base_seed


def test_start_from_ref_gives_the_first_clip_motion_tokens(plan_of: Any) -> None:
    """The first clip has no motion tokens, unless it starts from the reference picture."""
    assert [clip.tokens for clip in plan_of(seconds(10)).clips] == [30576, 32760]
    assert [clip.tokens for clip in plan_of(seconds(10), start_from_ref=True).clips] == [32760, 32760]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"guide_steps": [0, 31]}, r"guide_steps \[0, 31\]: expected a range within the 30 steps"),
        ({"guide_steps": [0, 4], "sample_guide_scale": 1}, "with sample_guide_scale 1: expected a scale above 1"),
    ],
)
def test_guided_steps_that_do_not_exist_are_refused(plan_of: Any, fields: dict[str, Any], words: str) -> None:
    """The message names the range, the steps and a remedy."""
    with pytest.raises(PermanentError, match=words):
        plan_of(seconds(5), **fields)


def test_fingerprints_of_plans_without_new_fields_stay(plan_of: Any) -> None:
    """The sampling of a plan states fields that were added later only if they are given."""
    fields = {"sample_steps", "sample_guide_scale", "sample_shift", "sample_solver", "start_from_ref"}
    assert set(plan_of(seconds(5)).sampling.model_dump()) == fields
    assert plan_of(seconds(5), guide_steps=[2, 9]).sampling.model_dump()["guide_steps"] == (2, 9)
