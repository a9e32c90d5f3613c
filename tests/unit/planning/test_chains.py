"""Where a speech is cut into chains."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s2v_tasks.planning.chains import find_cuts
from s2v_tasks.planning.pauses import SAMPLES_PER_FRAME, Samples
from s2v_tasks.schemas.plan import Cut


def cuts(samples: Samples, shortest: float, longest: float) -> list[Cut]:
    num_frames = -(-len(samples) // SAMPLES_PER_FRAME)
    return find_cuts(samples, num_frames, shortest_seconds=shortest, longest_seconds=longest)


def seconds(found: list[Cut]) -> list[float]:
    return [cut.frame / 16 for cut in found]


def test_the_end_of_each_sentence_is_a_cut(speech: Any) -> None:
    """Pauses of half a second and more start a chain, so late that only the held first picture is left of them."""
    found = cuts(speech((4, -20), (0.75, -70), (4, -20), (1.0, -70), (4, -20)), 3, 30)
    assert seconds(found) == [4.5, 9.5]
    assert [cut.pause_seconds for cut in found] == pytest.approx([0.75, 1.0], abs=0.05)


def test_a_cut_keeps_the_shortest_length(speech: Any) -> None:
    """Of two sentences that end too close together the longer pause is chosen; nothing is cut near the ends."""
    found = cuts(speech((1, -20), (0.6, -70), (4, -20), (0.6, -70), (1, -20), (1.2, -70), (4, -20)), 3, 30)
    assert seconds(found) == [8.125]


def test_short_pauses_are_used_only_where_a_chain_would_be_too_long(speech: Any) -> None:
    """A breath of 0.3 s is no reason to cut; the longest length is."""
    breath = speech((5, -20), (0.3, -70), (5, -20))
    assert cuts(breath, 3, 30) == []
    (cut,) = cuts(breath, 3, 6)
    assert 80 <= cut.frame <= 84
    assert cut.pause_seconds == pytest.approx(0.3, abs=0.05)


def test_without_a_pause_the_quietest_place_is_cut(speech: Any) -> None:
    """Speech that never pauses is cut where it is least loud, and the cut says that there was no pause."""
    found = cuts(speech((5.5, -20), (0.125, -30), (5.375, -20)), 3, 8)
    assert found == [Cut(frame=89, pause_seconds=None)]


def test_a_speech_that_fits_one_chain_is_not_cut(speech: Any) -> None:
    """A video shorter than the shortest chain stays whole, and silence is no reason to cut."""
    assert cuts(speech((0.5, -20), (0.6, -70), (0.5, -20)), 2, 4) == []
    assert cuts(speech((8, -120)), 2, 10) == []


def test_a_chain_may_last_exactly_as_long_as_the_bounds(speech: Any) -> None:
    """Both bounds are inclusive: where nothing else speaks for a place, no cut is made that is not needed."""
    even = speech((12, -20))
    assert [cut.frame for cut in cuts(even, 3, 6)] == [96]
    assert [cut.frame for cut in cuts(even, 6, 12)] == []
    assert len(cuts(speech((12.0625, -20)), 3, 6)) == 2
    late = speech((6, -20), (0.0625, -70), (5.9375, -20))
    assert [cut.frame for cut in cuts(late, 6, 11)] == [96]


@settings(max_examples=60, deadline=None)
@given(
    stretches=st.lists(st.tuples(st.floats(0.05, 3), st.sampled_from([-20, -24, -70, -120])), min_size=1, max_size=12),
    shortest=st.floats(2, 4),
    ratio=st.floats(2, 4),
)
def test_every_chain_keeps_its_bounds(
    speech: Any, stretches: list[tuple[float, float]], shortest: float, ratio: float
) -> None:
    """Whatever is said, each chain lasts from the shortest to the longest length, to within a frame."""
    samples = speech(*stretches)
    num_frames = -(-len(samples) // SAMPLES_PER_FRAME)
    found = cuts(samples, shortest, shortest * ratio)
    lengths = np.array([end - start for start, end in pairwise([0, *(cut.frame for cut in found), num_frames])])
    assert lengths.sum() == num_frames
    assert (lengths <= shortest * ratio * 16).all() or len(found) == 0
    assert (lengths > shortest * 16 - 1).all() or num_frames < shortest * 16
    assert found or num_frames <= shortest * ratio * 16 + 1
