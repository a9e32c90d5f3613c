"""Check that each planted fault is found by its measure, and that a clean video has no finding.

The video is one person who says a speech, in three clips of 32, 32 and 31 frames.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from s2v_tasks.perception.video import measure_video
from s2v_tasks.schemas.quality import VideoQuality
from s2v_tasks.validation.quality import in_words, judge_clip, judge_drift
from s2v_tasks.validation.quality_limits import load_quality_limits
from tests.unit.perception.drawn import FPS, SAMPLE_RATE, Person, Picture, blurred, brightened, moved, openings, speech

CLIPS = ((0, 32), (32, 64), (64, 95))
LIMITS = load_quality_limits(Path(__file__).parents[3] / "config")


def measured(frames: list[Picture], sound: np.ndarray | None = None, person: Person = Person(1)) -> VideoQuality:  # noqa: B008
    return measure_video(
        frames,
        CLIPS,
        fps=FPS,
        speech=speech("baker") if sound is None else sound,
        sample_rate=SAMPLE_RATE,
        reference=person.draw(0, 0),
    )


def findings(video: VideoQuality) -> set[tuple[int | None, str]]:
    """Return (clip, measure) of each finding; the clip of a drift is None."""
    clips = {
        (index, finding.measure)
        for index, clip in enumerate(video.clips)
        for finding in judge_clip(clip, video.reference, LIMITS)
    }
    return clips | {(None, finding.measure) for finding in judge_drift(video, LIMITS)}


@pytest.mark.parametrize("seed", [1, 2, 5])
def test_a_clean_video_has_no_finding(seed: int) -> None:
    """Every clip is within every limit, and the report says so."""
    person = Person(seed)
    video = measured(person.frames(openings("baker")), person=person)
    assert findings(video) == set()
    words = " ".join(in_words(video, LIMITS))
    assert "Faces: found in 100% of the frames, at most 1 at once." in words
    assert "Lip sync: the mouth " in words
    assert "Seams: 2 of 2 invisible." in words
    assert video.lip_sync is not None
    assert video.lip_sync.lag_ms == pytest.approx(0, abs=20)


def spoiled(talking: list[Picture], start: int, change: Callable[[Picture, int], Picture]) -> list[Picture]:
    return [picture if index < start else change(picture, index) for index, picture in enumerate(talking)]


def test_a_jump_of_three_pixels_at_a_seam_is_found(talking: list[Picture]) -> None:
    """A shift of all frames from the second clip on is found."""
    video = measured(spoiled(talking, 32, lambda picture, _: moved(picture, 3)))
    assert findings(video) == {(1, "seam_jump")}
    assert "Seams: 1 of 2 invisible." in in_words(video, LIMITS)


def test_a_colour_step_of_four_levels_at_a_seam_is_found(talking: list[Picture]) -> None:
    """All frames from the second clip on that are four levels brighter are found."""
    video = measured(spoiled(talking, 32, lambda picture, _: brightened(picture, 4)))
    assert findings(video) == {(1, "seam_colour_jump")}


def test_blur_that_grows_from_clip_to_clip_is_found_as_drift(talking: list[Picture]) -> None:
    """A blur of 0.5 pixels in the second clip and of 1 in the third is found."""
    video = measured(spoiled(talking, 32, lambda picture, index: blurred(picture, 0.5 if index < 64 else 1.0)))
    assert (None, "sharpness_drift") in findings(video)
    assert (2, "sharpness_ratio") in findings(video)


def test_colours_that_drift_are_found(talking: list[Picture]) -> None:
    """Clips that are each ten levels brighter than the one before are found."""
    video = measured(spoiled(talking, 32, lambda picture, index: brightened(picture, 10 if index < 64 else 20)))
    assert (None, "colour_drift") in findings(video)


def test_a_face_that_is_gone_for_ten_frames_is_found(talking: list[Picture]) -> None:
    """Frames 40 to 49 without a face are found."""
    wall = np.broadcast_to(talking[0][2, 2], talking[0].shape)
    frames = [np.array(wall) if 40 <= index < 50 else picture for index, picture in enumerate(talking)]
    video = measured(frames)
    assert video.clips[1].face.longest_gap_frames == 10
    assert {(1, "face_gap_frames"), (1, "face_share")} <= findings(video)


def test_another_person_from_the_second_clip_on_is_found(talking: list[Picture]) -> None:
    """A person with other skin and other proportions is found."""
    other = Person(3).frames(openings("baker"))
    video = measured(talking[:32] + other[32:])
    found = findings(video)
    assert (1, "skin_difference") in found
    assert (1, "seam_colour") in found
    assert not {measure for clip, measure in found if clip == 0}


def test_a_still_mouth_fails_the_clip() -> None:
    """A mouth that stays closed during the speech fails the clip."""
    video = measured(Person(1).frames(np.zeros(95)))
    still = [
        finding for finding in judge_clip(video.clips[0], video.reference, LIMITS) if finding.measure == "still_mouth"
    ]
    assert [finding.level for finding in still] == ["fail"]
    assert "Lip sync: the mouth is still during speech." in in_words(video, LIMITS)


def test_other_speech_is_found(talking: list[Picture]) -> None:
    """Frames of the speech `baker` do not fit the audio of `harbour`."""
    video = measured(talking, speech("harbour")[: 95 * SAMPLE_RATE // FPS])
    assert "the mouth does not follow the speech" in " ".join(in_words(video, LIMITS))


@pytest.mark.parametrize("milliseconds", [-188, 188])
def test_a_planted_lag_is_reported_with_its_sign(talking: list[Picture], milliseconds: int) -> None:
    """Later audio is reported as a mouth that leads, and earlier audio as one that lags."""
    pad = SAMPLE_RATE * abs(milliseconds) // 1000
    sound = np.concatenate([np.zeros(pad, np.float32), speech("baker")]) if milliseconds > 0 else speech("baker")[pad:]
    video = measured(talking, sound)
    assert video.lip_sync is not None
    assert video.lip_sync.lag_ms == pytest.approx(-milliseconds, abs=25)
    assert ("leads" if milliseconds > 0 else "follows") in in_words(video, LIMITS)[1]


def test_measures_without_a_reference_or_speech_are_left_out(talking: list[Picture]) -> None:
    """A video alone has measures of faces, seams and sharpness, and none of comparisons."""
    video = measure_video(talking[:64], CLIPS, fps=FPS, speech=None, sample_rate=SAMPLE_RATE, reference=None)
    assert [clip.end_frame for clip in video.clips] == [32, 64]
    assert video.lip_sync is None
    assert video.drift is None
    look = video.clips[1].look
    assert (look.skin_difference, look.background_difference, look.contrast_ratio) == (None, None, None)
    assert video.clips[1].seam is not None
    assert findings(video) == set()


@pytest.mark.parametrize(("clips", "names"), [(((0, 95),), {"lip_sync_margin"}), (CLIPS, set())])
def test_lip_sync_is_judged_in_clips_of_three_seconds_and_more(
    talking: list[Picture], clips: tuple[tuple[int, int], ...], names: set[str]
) -> None:
    """Other speech is found in a clip of six seconds, and not in one of two, where chance decides."""
    video = measure_video(
        talking,
        clips,
        fps=FPS,
        speech=speech("harbour")[: 95 * SAMPLE_RATE // FPS],
        sample_rate=SAMPLE_RATE,
        reference=Person(1).draw(0, 0),
    )
    assert {measure for _, measure in findings(video) if measure.startswith("lip_sync")} == names
