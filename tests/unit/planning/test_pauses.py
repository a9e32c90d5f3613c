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


def steps(*parts: tuple[int, float]) -> list[tuple[int, int]]:
    """Return the pauses, in windows of 10 ms, of parts that have so many windows of exactly so many dB."""
    levels = np.concatenate([np.full(windows, 10 ** (level / 20)) for windows, level in parts])
    window = SAMPLE_RATE // 100
    return [(p.start_sample // window, p.end_sample // window) for p in find_pauses(np.repeat(levels, window))]


@pytest.mark.parametrize(("loud", "pauses"), [(48, []), (52, [(0, 948)])])
def test_speech_is_as_loud_as_a_twentieth_of_the_recording(loud: int, pauses: list[tuple[int, int]]) -> None:
    """A sound that is louder for less than a twentieth of the time is no speech, and the rest is no pause."""
    assert steps((1000 - loud, -60), (loud, -20)) == pauses


@pytest.mark.parametrize(("quietest", "pauses"), [(8, [(500, 1000)]), (12, [])])
def test_the_room_is_as_quiet_as_a_hundredth_of_the_recording(quietest: int, pauses: list[tuple[int, int]]) -> None:
    """A part that is quieter for less than a hundredth of the time is not the room."""
    assert steps((500, -20), (quietest, -55), (500 - quietest, -45)) == pauses


@pytest.mark.parametrize(
    ("room", "level", "is_pause"),
    [(-80, -50.5, True), (-80, -49.5, False), (-45, -40.5, True), (-45, -39.5, False)],
)
def test_a_pause_is_30_db_below_the_speech_or_a_fifth_above_the_room(room: float, level: float, is_pause: bool) -> None:
    """The higher limit counts: a fifth of the distance from the room to the speech, or 30 dB below the speech."""
    found = steps((300, -20), (50, room), (300, -20), (50, level), (300, -20))
    assert found == [(300, 350), (650, 700)][: 1 + is_pause]


@pytest.mark.parametrize(("room", "pauses"), [(-25.9, []), (-26.1, [(300, 400)])])
def test_a_recording_has_pauses_from_a_range_of_6_db_on(room: float, pauses: list[tuple[int, int]]) -> None:
    """Music and tones have a smaller range."""
    assert steps((300, -20), (100, room), (300, -20)) == pauses
