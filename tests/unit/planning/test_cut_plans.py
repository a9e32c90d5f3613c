"""Check plans of videos that are cut into chains."""

import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s2v_tasks.errors import PermanentError
from s2v_tasks.planning.clips import lay_out
from s2v_tasks.schemas.plan import Plan
from tests.unit.planning.conftest import seconds


def frames(plan: Plan) -> list[int]:
    return [clip.infer_frames for clip in plan.clips]


def test_a_cut_plan_has_a_chain_for_each_sentence(plan_of: Any, sentences: Any) -> None:
    """Chains are contiguous, each divided by the rule for its own frames, and starts from the picture."""
    plan: Plan = plan_of(seconds(20), samples=sentences, continuity="cut", min_chain_seconds=4)
    assert [(cut.frame, cut.pause_seconds) for cut in plan.cuts] == [(104, 0.75), (212, 0.75)]
    assert [clip.chain_index for clip in plan.clips] == [0, 0, 1, 1, 2, 2]
    assert [clip.predecessor for clip in plan.clips] == [None, 0, None, 2, None, 4]
    assert [clip.successor for clip in plan.clips] == [1, None, 3, None, 5, None]
    assert frames(plan) == [52, 52, 56, 52, 56, 52]
    assert [clip.start_frame for clip in plan.clips] == [0, 52, 104, 160, 212, 268]
    assert [clip.end_frame for clip in plan.clips] == [52, 104, 160, 212, 268, 320]
    assert all(plan.clips[k].tokens < plan.clips[k + 1].tokens for k in (0, 2, 4))  # no motion in the first one
    assert plan.warnings == ()


def test_a_crossfade_renders_a_quarter_of_a_second_more_of_each_chain_but_the_last(
    plan_of: Any, sentences: Any
) -> None:
    """The end of a chain fades out beyond its last frame into the first frames of the next; no length changes."""
    fields = {"samples": sentences, "continuity": "cut", "min_chain_seconds": 4}
    plan: Plan = plan_of(seconds(20), transition="crossfade", **fields)
    assert [clip.end_frame for clip in plan.clips] == [56, 104, 160, 212, 268, 320]
    assert [clip.fade_in_frames for clip in plan.clips] == [0, 0, 4, 0, 4, 0]
    assert [clip.fade_out_frames for clip in plan.clips] == [0, 4, 0, 4, 0, 0]
    assert all(clip.stored_frames <= clip.infer_frames for clip in plan.clips)
    assert plan_of(seconds(20), transition="crossfade", infer_frames=20, **fields).num_frames == 320
    with pytest.raises(PermanentError, match="infer_frames 16 is too short for a cross-fade: expected at least 20"):
        plan_of(seconds(20), transition="crossfade", infer_frames=16, **fields)


@settings(max_examples=100, deadline=None)
@given(
    bounds=st.lists(st.integers(32, 400), min_size=1, max_size=5),
    infer_frames=st.sampled_from(range(20, 121, 4)),
    num_clip=st.none() | st.integers(1, 30),
)
def test_every_clip_of_every_chain_delivers_frames(bounds: list[int], infer_frames: int, num_clip: int | None) -> None:
    """With cross-fades, ranges are contiguous, each clip renders what it stores, and each fade-out has a fade-in."""
    edges = [0, *itertools.accumulate(bounds)]
    slots = lay_out(edges, infer_frames, num_clip, fade_frames=4)
    assert [slot.start_frame for slot in slots] == [0, *(slot.end_frame for slot in slots[:-1])]
    assert all(0 < slot.end_frame - slot.start_frame + slot.fade_out_frames <= slot.infer_frames for slot in slots)
    assert [slot.fade_out_frames for slot in slots[:-1]] == [slot.fade_in_frames for slot in slots[1:]]
    assert slots[-1].fade_out_frames == 0
    assert slots[-1].end_frame == edges[-1] or len(slots) == num_clip


def test_a_preview_of_a_cut_video_keeps_the_first_clips(plan_of: Any, sentences: Any) -> None:
    """`num_clip` counts the clips of all chains, and the plan warns of what it leaves out."""
    fields = {"samples": sentences, "continuity": "cut", "min_chain_seconds": 4, "transition": "crossfade"}
    plan: Plan = plan_of(seconds(20), num_clip=3, **fields)
    assert [clip.chain_index for clip in plan.clips] == [0, 0, 1]
    assert (frames(plan)[2], plan.num_frames, len(plan.cuts)) == (80, 104 + 80, 1)
    assert "leaves out the last 8.50 s of 20.00 s of speech, which needs 6 clips" in plan.warnings[0]
    assert plan_of(seconds(20), num_clip=2, **fields).clips[-1].fade_out_frames == 0
