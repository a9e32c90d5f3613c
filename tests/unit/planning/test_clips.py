"""Check the division of frames into clips."""

import math
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from s2v_tasks.planning.clips import clips_needed, clips_of_processes, frame_ranges, lay_out, split

LEGAL_INFER_FRAMES = st.sampled_from(range(16, 121, 4))
NUM_FRAMES = st.integers(1, 20_000)


@pytest.mark.parametrize(
    ("num_frames", "infer_frames", "expected"),
    [
        (1, 80, [16]),
        (17, 80, [20]),
        (80, 80, [80]),
        (81, 80, [44, 40]),
        (116, 80, [60, 56]),
        (120, 80, [80, 40]),
        (160, 80, [80, 80]),
        (161, 80, [80, 44, 40]),
        (316, 80, [80, 80, 80, 76]),
        (960, 80, [80] * 12),
        (49, 48, [28, 24]),
        (32, 28, [16, 16]),
        (25, 24, [16, 16]),
        (36, 24, [20, 16]),
        (20, 16, [16, 16]),
        (81, 20, [20, 16, 16, 16, 16]),
        (104, 20, [20, 20, 16, 16, 16, 16]),
        (44, 20, [16, 16, 16]),
    ],
)
def test_split_examples(num_frames: int, infer_frames: int, expected: list[int]) -> None:
    """All clips are full except the last, which shares its frames with as few others as possible if it is short."""
    assert split(num_frames, infer_frames) == expected


@settings(max_examples=4000, deadline=None)
@given(NUM_FRAMES, LEGAL_INFER_FRAMES)
@example(80, 80)
@example(960, 80)
def test_split_covers_with_the_fewest_legal_clips(num_frames: int, infer_frames: int) -> None:
    """Any speech is covered by the fewest legal clips, with fewer than 4 surplus frames where possible."""
    clips = split(num_frames, infer_frames)
    assert len(clips) == math.ceil(num_frames / infer_frames) == clips_needed(num_frames, infer_frames)
    assert all(frames % 4 == 0 and 16 <= frames <= infer_frames for frames in clips)
    in_vain = sum(clips) - num_frames
    assert in_vain >= 0
    assert in_vain < 4 or clips == [16] * len(clips)


@settings(max_examples=4000, deadline=None)
@given(NUM_FRAMES, LEGAL_INFER_FRAMES)
def test_split_ends_with_no_stub(num_frames: int, infer_frames: int) -> None:
    """Clips never become longer, only shared ones are not full, and the last is not too short."""
    clips = split(num_frames, infer_frames)
    assert all(earlier >= later for earlier, later in pairwise(clips))
    short = [frames for frames in clips if frames < infer_frames]
    assert len(short) <= 1 or max(short) - min(short) <= 4
    assert len(clips) == 1 or clips[-1] >= min(infer_frames / 2, clips[-2] - 4)


@settings(max_examples=1000, deadline=None)
@given(NUM_FRAMES, LEGAL_INFER_FRAMES, st.integers(1, 300))
def test_num_clip_makes_a_preview_or_changes_nothing(num_frames: int, infer_frames: int, num_clip: int) -> None:
    """Fewer clips than needed are all full; as many or more change nothing."""
    clips = split(num_frames, infer_frames, num_clip)
    if num_clip < clips_needed(num_frames, infer_frames):
        assert clips == [infer_frames] * num_clip
    else:
        assert clips == split(num_frames, infer_frames)


@settings(max_examples=1000, deadline=None)
@given(NUM_FRAMES, LEGAL_INFER_FRAMES)
def test_ranges_are_contiguous_and_end_with_the_video(num_frames: int, infer_frames: int) -> None:
    """Ranges are contiguous from 0 to the last frame, every clip has frames, and only the last is trimmed."""
    clips = split(num_frames, infer_frames)
    ranges = list(frame_ranges(clips, 0, num_frames))
    assert ranges[0][0] == 0
    assert ranges[-1][1] == num_frames
    assert all(earlier[1] == later[0] for earlier, later in pairwise(ranges))
    lengths = [end - start for start, end in ranges]
    assert lengths[:-1] == clips[:-1]
    assert 0 < lengths[-1] <= clips[-1]


@pytest.mark.parametrize(
    ("chains", "clips_per_pod", "expected"),
    [
        ([0, 0, 0], 1, [[0], [1], [2]]),
        ([0, 0, 0], 2, [[0, 1], [2]]),
        ([0, 0, 1, 1, 1, 2], 2, [[0, 1], [2, 3], [4], [5]]),
        ([0, 1, 2], 16, [[0], [1], [2]]),
    ],
)
def test_a_process_renders_clips_of_one_chain_only(chains: list[int], clips_per_pod: int, expected: object) -> None:
    """Every clip belongs to one process, in order, and a process ends with its chain."""
    assert [list(clips) for clips in clips_of_processes(chains, clips_per_pod)] == expected


def test_the_last_chain_renders_no_frames_to_fade_out() -> None:
    """Each chain but the last renders the frames of its cross-fade."""
    slots = lay_out([0, 40, 80], 48, None, 4)
    assert [slot.infer_frames for slot in slots] == [44, 40]
    assert [slot.end_frame for slot in slots] == [40, 80]
