"""Check planted faults in pictures that were not used to choose the limits: a cartoon and a warped photograph."""

from dataclasses import dataclass

import numpy as np
import pytest

from s2v_tasks.perception import landmarks, lip_sync
from s2v_tasks.perception.faces import FaceFinder
from s2v_tasks.perception.lip_sync import Mouth, measure_lip_sync
from s2v_tasks.perception.video import measure_video
from s2v_tasks.schemas.quality import VideoQuality
from s2v_tasks.validation.quality import in_words, judge_clip
from tests.unit.perception.drawn import FPS, SAMPLE_RATE, Picture, blurred, brightened, moved, openings, speech
from tests.unit.perception.drawn_styles import Cartoon, cartoon_frames
from tests.unit.perception.test_faults import CLIPS, LIMITS, findings
from tests.unit.perception.warped import photograph

LENGTH = 95


@dataclass(frozen=True)
class Subject:
    """A talking picture, its still picture, and another talking picture."""

    frames: list[Picture]
    reference: Picture
    other: list[Picture]


@pytest.fixture(scope="module", params=["cartoon", "photograph"])
def subject(request: pytest.FixtureRequest) -> Subject:
    mouth = openings("baker")[:LENGTH]
    if request.param == "cartoon":
        return Subject(cartoon_frames(5, mouth), Cartoon(5).draw(0, 0), cartoon_frames(25, mouth))
    one, other = photograph("astronaut.jpg"), photograph("woman.jpg")
    return Subject(one.frames(mouth), one.draw(0, 0), other.frames(mouth))


def measured(frames: list[Picture], reference: Picture, clips: tuple[tuple[int, int], ...] = CLIPS) -> VideoQuality:
    sound = speech("baker")[: len(frames) * SAMPLE_RATE // FPS]
    return measure_video(frames, clips, fps=FPS, speech=sound, sample_rate=SAMPLE_RATE, reference=reference)


def mouth_of(frames: list[Picture], finder: FaceFinder) -> Mouth:
    """Return opening and darkness of the mouth in frames that all have a face."""
    faces = [finder.find(frame) for frame in frames]
    opening = [landmarks.mouth_opening(face.landmarks) for face in faces if face]
    darkness = [
        landmarks.mouth_darkness(frame, face.landmarks) for frame, face in zip(frames, faces, strict=True) if face
    ]
    return Mouth(np.array(opening), np.array(darkness))


def test_a_clean_video_has_no_finding(subject: Subject) -> None:
    """Every clip is within every limit, and the lag is that of the picture."""
    video = measured(subject.frames, subject.reference)
    assert findings(video) == set()
    assert video.lip_sync is not None
    assert video.lip_sync.lag_ms == pytest.approx(0, abs=20)


def test_lags_and_other_speech_are_found(subject: Subject, finder: FaceFinder) -> None:
    """A lag of 188 ms of either sign is right within 20 ms; the right speech fits better than three others."""
    mouth = mouth_of(subject.frames, finder)
    sound, late = speech("baker")[: LENGTH * SAMPLE_RATE // FPS], SAMPLE_RATE * 188 // 1000
    right = measure_lip_sync(mouth, sound, SAMPLE_RATE, FPS)
    for shifted, lag_ms in ((np.pad(sound, (late, 0)), -188), (sound[late:], 188)):
        assert measure_lip_sync(mouth, shifted, SAMPLE_RATE, FPS).lag_ms == pytest.approx(lag_ms, abs=20)
    for name in ("delay", "harbour", "tickets"):
        other = measure_lip_sync(mouth, np.resize(speech(name), len(sound)), SAMPLE_RATE, FPS)
        assert (other.correlation or 0) < (right.correlation or 0)


@pytest.mark.parametrize(
    ("person", "name"), [(Cartoon(2395), "baker"), (Cartoon(10673, 128, 160), "harbour")], ids=["small", "wrong"]
)
def test_a_mouth_whose_lips_mislead_the_landmarks_is_judged_by_its_darkness(
    person: Cartoon, name: str, finder: FaceFinder
) -> None:
    """The landmarks of the lips hardly move, or not with the speech. The dark hole does, so there is no finding."""
    frames = [person.draw(float(opening), index / FPS) for index, opening in enumerate(openings(name)[:LENGTH])]
    sound = speech(name)[: LENGTH * SAMPLE_RATE // FPS]
    by_lips = lip_sync.compare(mouth_of(frames, finder).opening, sound, SAMPLE_RATE, FPS)
    assert by_lips is not None
    assert by_lips.margin < 0.1
    video = measure_video(
        frames, ((0, LENGTH),), fps=FPS, speech=sound, sample_rate=SAMPLE_RATE, reference=person.draw(0, 0)
    )
    assert findings(video) == set()
    assert video.lip_sync is not None
    assert video.lip_sync.darkness_range is not None
    assert video.lip_sync.lag_ms == pytest.approx(0, abs=20)
    assert "Lip sync: the mouth follows the sound by 0 ms" in " ".join(in_words(video, LIMITS))


def test_each_planted_fault_is_found(subject: Subject) -> None:
    """A jump, a colour step, growing blur, a missing face and another person are found from the second clip on."""
    frames = subject.frames
    wall = np.broadcast_to(frames[0][2, 2], frames[0].shape).astype(np.uint8)
    faults = {
        (1, "seam_jump"): frames[:32] + [moved(frame, 3) for frame in frames[32:]],
        (1, "seam_colour_jump"): frames[:32] + [brightened(frame, 4) for frame in frames[32:]],
        (None, "sharpness_drift"): frames[:32]
        + [blurred(frame, 0.5) for frame in frames[32:64]]
        + [blurred(frame, 1.0) for frame in frames[64:]],
        (1, "face_gap_frames"): frames[:40] + 10 * [wall] + frames[50:],
        (1, "skin_difference"): frames[:32] + subject.other[32:],
    }
    assert [
        fault for fault, spoiled in faults.items() if fault not in findings(measured(spoiled, subject.reference))
    ] == []


@pytest.mark.parametrize(
    "picture",
    [Cartoon(203), Cartoon(207), photograph("astronaut.jpg")],
    ids=["cartoon-203", "cartoon-207", "photograph"],
)
def test_a_still_mouth_in_a_head_that_sways_fails_the_clip(picture: object) -> None:
    """A still mouth fails, although its landmarks move by 1 to 3 % of the face's height."""
    frames = [picture.draw(0.0, index / FPS) for index in range(64)]  # type: ignore[attr-defined]
    video = measured(frames, frames[0], ((0, 64),))
    levels = {
        finding.level
        for finding in judge_clip(video.clips[0], video.reference, LIMITS)
        if finding.measure == "still_mouth"
    }
    assert levels == {"fail"}
    assert "Lip sync: the mouth is still during speech." in in_words(video, LIMITS)
