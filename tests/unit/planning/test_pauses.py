"""Check the detection of pauses."""

from typing import Any

import numpy as np
import pytest

from s2v_tasks.planning.chains import SAMPLE_RATE, boundary_levels, find_pauses


def found(samples: np.ndarray) -> list[tuple[float, float]]:
    return [(pause.start_sample / SAMPLE_RATE, pause.end_sample / SAMPLE_RATE) for pause in find_pauses(samples)]


@pytest.mark.parametrize("room_db", [-120, -70, -45, -35])
def test_a_pause_is_found_in_a_quiet_and_in_a_noisy_room(speech: Any, room_db: float) -> None:
    """The ends of a pause are right within a few hundredths of a second, for any noise of the room."""
    (pause,) = found(speech((2.0, -20), (0.6, room_db), (3.0, -20)))
    assert pause == pytest.approx((2.0, 2.6), abs=0.03)


def test_a_click_does_not_end_a_pause(speech: Any) -> None:
    """A short click within a pause does not split it."""
    assert len(found(speech((1.0, -20), (0.3, -70), (0.02, -25), (0.3, -70), (1.0, -20)))) == 1


def test_short_gaps_inside_words_are_no_pauses(speech: Any) -> None:
    """A closure of 0.12 s within a word is no pause."""
    assert found(speech((1.0, -20), (0.12, -70), (1.0, -20))) == []


def test_digital_silence_does_not_hide_the_pauses_beside_it(speech: Any) -> None:
    """A file padded with digital silence has pauses that are as loud as a room."""
    pauses = found(speech((1.0, -120), (2.0, -20), (0.5, -65), (2.0, -20), (1.0, -120)))
    assert [round(start, 1) for start, _ in pauses] == [0.0, 3.0, 5.5]
    assert pauses[-1][1] == 6.5


@pytest.mark.parametrize("level", [-120, -20])
def test_sound_without_loud_and_quiet_has_no_pauses(speech: Any, level: float) -> None:
    """Audio of silence alone, or of noise alone, has no pauses."""
    assert found(speech((3.0, level))) == []
    assert found(np.zeros(0, dtype=np.float32)) == []


def test_the_loudness_of_a_boundary_is_that_of_the_frames_beside_it(speech: Any) -> None:
    """Each frame boundary has a level, and the lowest levels are in the quiet part."""
    levels = boundary_levels(speech((1.0, -20), (0.5, -50), (1.0, -20)), 40)
    assert levels.shape == (41,)
    assert list(np.flatnonzero(levels < -45)) == list(range(17, 24))
    assert levels[8] == pytest.approx(-20, abs=0.5)


def test_a_pause_of_a_loud_room_is_found(speech: Any) -> None:
    """A difference of 10 dB makes a pause."""
    (pause,) = found(speech((2.0, -20), (0.6, -30), (3.0, -20)))
    assert pause == pytest.approx((2.0, 2.6), abs=0.03)


def test_a_single_pause_in_twenty_seconds_of_a_loud_room_is_found(speech: Any) -> None:
    """A pause may be as short as a hundredth of the speech."""
    (pause,) = found(speech((10.0, -20), (0.3, -30), (10.0, -20)))
    assert pause == pytest.approx((10.0, 10.3), abs=0.03)


def test_digital_silence_has_the_lowest_level() -> None:
    """Each boundary in digital silence has -120 dB, also after the last sample."""
    assert boundary_levels(np.zeros(8_000, np.float32), 12) == pytest.approx(np.full(13, -120.0))


def test_a_small_difference_of_loudness_is_no_pause(speech: Any) -> None:
    """A part that is 4 dB quieter is no pause."""
    assert found(speech((2.0, -20), (0.6, -24), (3.0, -20))) == []


def test_the_shortest_pause_lasts_a_fifth_of_a_second() -> None:
    """A pause has at least 0.2 s; 10 ms less is none."""
    for num_quiet, num_pauses in ((20, 1), (19, 0)):
        levels = np.repeat([0.1] * 100 + [0.0001] * num_quiet + [0.1] * 100, SAMPLE_RATE // 100)
        assert len(find_pauses(levels.astype(np.float32))) == num_pauses


def test_a_pause_at_the_end_ends_with_the_samples(speech: Any) -> None:
    """A pause at the end may end within a window of 10 ms."""
    samples = speech((2.0, -20), (0.6, -70))[:-50]
    assert find_pauses(samples)[-1].end_sample == len(samples)
