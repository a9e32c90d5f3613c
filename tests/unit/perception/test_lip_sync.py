"""Check the lip sync of known mouths against known speech."""

import numpy as np
import pytest

from s2v_tasks.perception import lip_sync
from s2v_tasks.perception.lip_sync import Mouth, measure_lip_sync
from s2v_tasks.schemas.quality import LipSyncQuality
from s2v_tasks.validation.quality import judge_clip
from tests.unit.perception.drawn import FPS, SAMPLE_RATE, openings, speech
from tests.unit.perception.test_faults import LIMITS
from tests.unit.rendering.test_takes import MEASURED

NAMES = ("baker", "tickets", "delay", "harbour")


def delayed(samples: np.ndarray, seconds: float) -> np.ndarray:
    """Return the audio moved later, or earlier if negative."""
    count = round(abs(seconds) * SAMPLE_RATE)
    return np.concatenate([np.zeros(count, np.float32), samples]) if seconds > 0 else samples[count:]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("milliseconds", [-188, -100, 0, 100, 188])
def test_a_planted_lag_is_found_within_20_ms(name: str, milliseconds: int) -> None:
    """Audio that is moved later gives a mouth that leads by as much."""
    found = lip_sync.compare(openings(name), delayed(speech(name), milliseconds / 1000), SAMPLE_RATE, FPS)
    assert found is not None
    assert -1000 * found.lag_seconds == pytest.approx(milliseconds, abs=20)


@pytest.mark.parametrize("name", NAMES)
def test_the_right_speech_correlates_more_than_any_other(name: str) -> None:
    """The right speech fits better than other speech, and than the stand-in that is made if no other is given."""
    right = lip_sync.compare(openings(name), speech(name), SAMPLE_RATE, FPS)
    assert right is not None
    assert right.correlation > right.other_correlation + 0.15
    for other in NAMES:
        if other != name:
            wrong = lip_sync.compare(openings(name), speech(other), SAMPLE_RATE, FPS)
            assert wrong is not None
            assert right.correlation > wrong.correlation + 0.1


def test_frames_without_a_face_are_left_out() -> None:
    """A gap of ten frames changes lag and correlation little."""
    opening = openings("tickets").copy()
    opening[30:40] = np.nan
    found = lip_sync.compare(opening, speech("tickets"), SAMPLE_RATE, FPS)
    assert found is not None
    assert abs(found.lag_seconds) <= 0.02
    assert found.correlation > 0.4


def test_a_still_mouth_silence_and_a_short_piece_have_no_lag() -> None:
    """Without variation of mouth or audio, or with less than two seconds, there is no lag."""
    opening, samples = openings("baker"), speech("baker")
    assert lip_sync.compare(np.full_like(opening, 0.03), samples, SAMPLE_RATE, FPS) is None
    assert lip_sync.compare(opening, np.zeros_like(samples), SAMPLE_RATE, FPS) is None
    assert lip_sync.compare(opening[: 2 * FPS - 1], samples, SAMPLE_RATE, FPS) is None


def test_the_envelope_is_zero_in_silence_and_beyond_the_sound() -> None:
    """A tone from 1 s to 2 s of 3 s is loud in its own frames only, whatever its level."""
    samples = np.zeros(3 * SAMPLE_RATE, np.float32)
    samples[SAMPLE_RATE : 2 * SAMPLE_RATE] = np.sin(np.arange(SAMPLE_RATE) * 0.3)
    loud = lip_sync.envelope(samples, SAMPLE_RATE, 4 * FPS, FPS)
    assert (loud[: FPS - 1] == 0).all()
    assert (loud[2 * FPS + 1 :] == 0).all()
    assert loud[FPS + 1 : 2 * FPS - 1] == pytest.approx(loud[FPS + 1], rel=0.05)
    assert lip_sync.envelope(samples / 100, SAMPLE_RATE, 4 * FPS, FPS) == pytest.approx(loud, abs=1e-3)


@pytest.mark.parametrize(
    ("darkness_range", "by_darkness"), [(0.06, True), (0.02, False)], ids=["moves", "within the noise of still mouths"]
)
def test_the_darkness_counts_if_it_moves_and_follows_the_speech_better(
    darkness_range: float, by_darkness: bool
) -> None:
    """Landmarks that follow other speech are overruled by darkness that follows this speech."""
    wrong, right = openings("harbour")[:95], openings("baker")[:95]
    darkness = 0.1 + darkness_range * (right - right.min()) / (np.percentile(right, 95) - np.percentile(right, 5))
    found = measure_lip_sync(Mouth(wrong, darkness), speech("baker"), SAMPLE_RATE, FPS)
    assert (found.darkness_range is not None) is by_darkness
    assert found.lag_ms is not None
    assert (abs(found.lag_ms) <= 20) is by_darkness
    assert found.opening_range == pytest.approx(
        measure_lip_sync(Mouth(wrong, np.full(95, np.nan)), speech("baker"), SAMPLE_RATE, FPS).opening_range
    )


def test_landmarks_that_follow_the_speech_better_than_the_darkness_count() -> None:
    """The darkness of a shadow does not replace lips that are seen well."""
    right, wrong = openings("baker")[:95], openings("harbour")[:95]
    found = measure_lip_sync(Mouth(right, wrong), speech("baker"), SAMPLE_RATE, FPS)
    assert (found.darkness_range, found.silent_darkness_range) == (None, None)
    assert found.lag_ms == pytest.approx(0, abs=20)


FOLLOWS = LipSyncQuality(
    lag_ms=0.0, correlation=0.6, other_correlation=0.2, speech_share=0.8, opening_range=0.1, silent_opening_range=0.01
)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, set()),
        ({"opening_range": 0.004}, {"still_mouth"}),
        ({"opening_range": 0.004, "darkness_range": 0.05}, set()),
        ({"opening_range": 0.004, "darkness_range": 0.05, "correlation": 0.3}, {"still_mouth"}),
        ({"silent_opening_range": 0.095}, {"silent_mouth_ratio"}),
        ({"silent_opening_range": 0.095, "darkness_range": 0.05, "silent_darkness_range": 0.01}, set()),
        ({"darkness_range": 0.05, "silent_darkness_range": 0.049}, {"silent_mouth_ratio"}),
    ],
    ids=[
        "follows", "still lips", "still lips, but the hole follows", "still lips and a hole that does not follow",
        "lips move in silence", "lips move in silence, but the hole counts", "the hole moves in silence",
    ],
)  # fmt: skip
def test_a_clip_is_judged_by_the_measure_that_sees_its_mouth(changes: dict[str, float], expected: set[str]) -> None:
    """Darkness that follows the speech rules out a still mouth; motion in silence is that of the same measure."""
    face = MEASURED.face.model_copy(update={"share_of_frames": 1.0})
    clip = MEASURED.model_copy(update={"end_frame": 80, "face": face, "lip_sync": FOLLOWS.model_copy(update=changes)})
    assert {finding.measure for finding in judge_clip(clip, None, LIMITS)} == expected
