"""Check the cuts of a speech into chains."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s2v_tasks.planning.chains import SAMPLES_PER_FRAME, Samples, boundary_levels, find_cuts
from s2v_tasks.schemas.plan import Cut


def cuts(samples: Samples, shortest: float, longest: float) -> list[Cut]:
    num_frames = -(-len(samples) // SAMPLES_PER_FRAME)
    return find_cuts(samples, num_frames, shortest_seconds=shortest, longest_seconds=longest)


def seconds(found: list[Cut]) -> list[float]:
    return [cut.frame / 16 for cut in found]


def test_the_end_of_each_sentence_is_a_cut(speech: Any) -> None:
    """Pauses of half a second and more start a chain, shortly before the speech continues."""
    found = cuts(speech((4, -20), (0.75, -70), (4, -20), (1.0, -70), (4, -20)), 3, 30)
    assert seconds(found) == [4.5, 9.5]
    assert [cut.pause_seconds for cut in found] == pytest.approx([0.75, 1.0], abs=0.05)


def test_a_cut_keeps_the_shortest_length(speech: Any) -> None:
    """Of two sentences that end too close together, the longer pause is cut; no cut is near the ends."""
    found = cuts(speech((1, -20), (0.6, -70), (4, -20), (0.6, -70), (1, -20), (1.2, -70), (4, -20)), 3, 30)
    assert seconds(found) == [8.125]


def test_short_pauses_are_used_only_where_a_chain_would_be_too_long(speech: Any) -> None:
    """A pause of 0.3 s is cut only if a chain would exceed the longest length."""
    breath = speech((5, -20), (0.3, -70), (5, -20))
    assert cuts(breath, 3, 30) == []
    (cut,) = cuts(breath, 3, 6)
    assert 80 <= cut.frame <= 84
    assert cut.pause_seconds == pytest.approx(0.3, abs=0.05)


def test_without_a_pause_the_quietest_place_is_cut(speech: Any) -> None:
    """Speech without pauses is cut where it is quietest, and the cut says that there was no pause."""
    found = cuts(speech((5.5, -20), (0.125, -30), (5.375, -20)), 3, 8)
    assert found == [Cut(frame=89, pause_seconds=None)]


def test_a_speech_that_fits_one_chain_is_not_cut(speech: Any) -> None:
    """A video shorter than the shortest chain is not cut, nor is silence."""
    assert cuts(speech((0.5, -20), (0.6, -70), (0.5, -20)), 2, 4) == []
    assert cuts(speech((8, -120)), 2, 10) == []


def test_a_chain_may_last_exactly_as_long_as_the_bounds(speech: Any) -> None:
    """Both bounds are inclusive, and no unnecessary cut is made."""
    even = speech((12, -20))
    assert [cut.frame for cut in cuts(even, 3, 6)] == [96]
    assert [cut.frame for cut in cuts(even, 6, 12)] == []
    assert len(cuts(speech((12.0625, -20)), 3, 6)) == 2
    late = speech((6, -20), (0.0625, -70), (5.9375, -20))
    assert [cut.frame for cut in cuts(late, 6, 11)] == [96]


@pytest.mark.parametrize(("shortest", "longest"), [(2, 4), (2, 5), (3, 9), (7, 14), (10, 35)])
@pytest.mark.parametrize("num_frames", [70, 83])
def test_the_quietest_of_all_ways_to_cut_is_taken(num_frames: int, shortest: int, longest: int, speech: Any) -> None:
    """Speech without pauses has the fewest cuts within the bounds, at the quietest positions."""
    loudness = np.random.default_rng(num_frames).uniform(-20, -16, num_frames)
    samples = speech(*((1 / 16, level) for level in loudness))
    costs = boundary_levels(samples, num_frames) + 1e6
    best: list[tuple[float, list[int]]] = [(0.0, [])] + [(np.inf, [])] * num_frames
    for frame in range(1, num_frames + 1):
        before = min(best[max(0, frame - longest) : max(0, frame - shortest + 1)], default=best[frame])
        best[frame] = (before[0] + (costs[frame] if frame < num_frames else 0), [*before[1], frame])
    found = cuts(samples, shortest / 16, longest / 16)
    assert [cut.frame for cut in found] == best[num_frames][1][:-1]
    assert {cut.pause_seconds for cut in found} == {None}


@pytest.mark.parametrize(("seconds_of_pause", "num_cuts"), [(0.49, 0), (0.5, 1), (0.7, 1)])
def test_a_sentence_ends_in_half_a_second(seconds_of_pause: float, num_cuts: int, speech: Any) -> None:
    """A pause shorter than half a second does not end a sentence."""
    assert len(cuts(speech((4, -20), (seconds_of_pause, -70), (4, -20)), 3, 30)) == num_cuts


@pytest.mark.parametrize(
    ("first", "second", "chosen"), [(1.0, 0.6, 0), (0.6, 1.0, 1), (1.9, 1.3, 0), (2.6, 2.2, 1), (2.2, 2.6, 1)]
)
def test_the_longer_of_two_pauses_counts_up_to_two_seconds(
    first: float, second: float, chosen: int, speech: Any
) -> None:
    """Of two close pauses the longer is cut; if both are longer than two seconds, the later one."""
    found = cuts(speech((8, -20), (first, -70), (2, -20), (second, -70), (8, -20)), 7, 30)
    assert [cut.pause_seconds for cut in found] == [pytest.approx((first, second)[chosen], abs=0.05)]


@pytest.mark.parametrize(("num_frames", "chosen"), [(294, 1.0), (290, 1.0), (288, 0.6), (286, 0.6)])
def test_a_longer_pause_is_worth_a_cut_beside_its_best_place(num_frames: int, chosen: float, speech: Any) -> None:
    """A pause that is 0.4 s longer is cut up to 3 frames from its best position, but not 5."""
    samples = speech((8, -20), (0.6, -70), (2, -20), (1.0, -70), (num_frames / 16 - 11.6, -20))
    assert [cut.pause_seconds for cut in cuts(samples, 7, 30)] == [pytest.approx(chosen, abs=0.05)]


@pytest.mark.parametrize(("shortest", "frames"), [(6, [320]), (11.625, [])])
def test_a_cut_long_before_the_speech_goes_on_is_worth_little(shortest: float, frames: list[int], speech: Any) -> None:
    """In a pause of 20 s a chain may begin 4 s too early if necessary, but not 10 s."""
    assert [cut.frame for cut in cuts(speech((4, -20), (20, -70), (2, -20)), shortest, 30)] == frames


@pytest.mark.parametrize(("shortest", "frames"), [(4.75, [76]), (4.8125, [])])
def test_a_cut_may_lie_where_the_speech_goes_on_but_not_behind(shortest: float, frames: list[int], speech: Any) -> None:
    """The last frame boundary within the pause may be cut."""
    assert [cut.frame for cut in cuts(speech((4, -20), (0.75, -70), (6, -20)), shortest, 30)] == frames


@pytest.mark.parametrize("pauses", [(0.3, 0.45), (0.45, 0.3)])
def test_of_short_pauses_the_longer_is_used(pauses: tuple[float, float], speech: Any) -> None:
    """If one cut is needed, it is in the longer of two short pauses."""
    found = cuts(speech((5, -20), (pauses[0], -70), (1, -20), (pauses[1], -70), (5, -20)), 3, 8)
    assert [cut.pause_seconds for cut in found] == [pytest.approx(0.45, abs=0.02)]


@pytest.mark.parametrize(("seconds_off", "seconds_of_pause"), [(14, 34.0), (20, 0.45)])
def test_a_long_pause_is_preferred_up_to_seventeen_seconds_from_its_best_place(
    seconds_off: int, seconds_of_pause: float, speech: Any
) -> None:
    """A cut in a long pause is preferred to one in a short pause, unless it is far from its best position."""
    samples = speech((35, -20), (0.45, -70), (4.8, -20), (34, -70), (8, -20))
    last_chain = 8.25 + seconds_off  # the shortest allowed: no cut lies later
    found = cuts(samples, last_chain, 60)
    assert [cut.pause_seconds for cut in found] == [pytest.approx(seconds_of_pause, abs=0.1)]


def test_every_boundary_of_frames_in_a_pause_is_a_place_for_a_cut(speech: Any) -> None:
    """A pause at the start of the video may be cut at the first frame boundary."""
    found = cuts(speech((0.5, -70), (4, -20)), 1 / 16, 30)
    assert [cut.frame for cut in found] == list(range(1, 9))


def test_more_sentences_are_worth_more_than_longer_pauses(speech: Any) -> None:
    """Two short pauses are cut if a long one between them would exclude both."""
    samples = speech((8, -20), (0.6, -70), (3.5, -20), (2.0, -70), (3.5, -20), (0.6, -70), (8, -20))
    assert [cut.pause_seconds for cut in cuts(samples, 7, 30)] == pytest.approx([0.6, 0.6], abs=0.05)


def test_a_video_that_ends_before_its_speech_is_cut_within(speech: Any) -> None:
    """Pauses after the last frame, or across it, are not cut."""
    samples = speech((4, -20), (0.75, -70), (4, -20), (1.0, -70), (4, -20), (0.75, -70), (4, -20))
    for num_frames in (100, 148, 155):
        assert [cut.frame for cut in find_cuts(samples, num_frames, shortest_seconds=1, longest_seconds=30)] == [72]


@pytest.mark.parametrize(("end", "cut"), [(4.725, 71), (4.75, 72), (4.80, 72), (4.85, 73)])
def test_a_chain_begins_a_quarter_of_a_second_before_its_speech(end: float, cut: int, speech: Any) -> None:
    """A cut is a quarter of a second, and less than a frame more, before the speech continues."""
    assert [c.frame for c in cuts(speech((4, -20), (end - 4, -70), (4, -20)), 3, 30)] == [cut]


@settings(max_examples=60, deadline=None)
@given(
    stretches=st.lists(st.tuples(st.floats(0.05, 3), st.sampled_from([-20, -24, -70, -120])), min_size=1, max_size=12),
    shortest=st.floats(2, 4),
    ratio=st.floats(2, 4),
)
def test_every_chain_keeps_its_bounds(
    speech: Any, stretches: list[tuple[float, float]], shortest: float, ratio: float
) -> None:
    """Each chain lasts from the shortest to the longest length within a frame, for any speech."""
    samples = speech(*stretches)
    num_frames = -(-len(samples) // SAMPLES_PER_FRAME)
    found = cuts(samples, shortest, shortest * ratio)
    lengths = np.array([end - start for start, end in pairwise([0, *(cut.frame for cut in found), num_frames])])
    assert lengths.sum() == num_frames
    assert (lengths <= shortest * ratio * 16).all() or len(found) == 0
    assert (lengths > shortest * 16 - 1).all() or num_frames < shortest * 16
    assert found or num_frames <= shortest * ratio * 16 + 1
