"""Check the optional comparison of faces with the reference picture."""

import pytest

from s2v_tasks.perception import face_identity
from s2v_tasks.perception.faces import FaceFinder
from s2v_tasks.perception.video import measure_video
from s2v_tasks.schemas.quality import ClipQuality
from s2v_tasks.validation.quality import judge_clip
from tests.unit.perception.drawn import FPS, SAMPLE_RATE, openings
from tests.unit.perception.test_faults import LIMITS
from tests.unit.perception.warped import photograph

needs_extra = pytest.mark.skipif(face_identity._network() is None, reason="s2v-tasks[identity] is not installed")


def measured() -> list[ClipQuality]:
    """Measures two clips of a talking photograph; the second clip shows another person."""
    one, other = photograph("astronaut.jpg"), photograph("woman.jpg")
    mouth = openings("baker")[:64]
    frames = one.frames(mouth[:32]) + other.frames(mouth[32:])
    clips = ((0, 32), (32, 64))
    video = measure_video(frames, clips, fps=FPS, speech=None, sample_rate=SAMPLE_RATE, reference=one.draw(0, 0))
    return list(video.clips)


@needs_extra
def test_another_person_is_found() -> None:
    """The clip with the reference's person has no finding, and the clip with another person has one."""
    same, other = measured()
    assert same.face.identity_difference is not None
    assert same.face.identity_difference < 0.4
    assert "identity_difference" not in {finding.measure for finding in judge_clip(same, None, LIMITS)}
    assert "identity_difference" in {finding.measure for finding in judge_clip(other, None, LIMITS)}


@needs_extra
@pytest.mark.parametrize("opening", [0.0, 0.5, 1.0])
def test_speaking_does_not_change_the_person(finder: FaceFinder, opening: float) -> None:
    """The distance to the same face with another mouth and place is below that to another face."""
    one, other = photograph("astronaut.jpg"), photograph("woman.jpg")
    picture = one.draw(0, 0)
    face = finder.find(picture)
    assert face is not None
    known = face_identity.Identity.of(picture, face.landmarks)
    assert known is not None
    distances = []
    for person in (one, other):
        frame = person.draw(opening, 2.5)
        found = finder.find(frame)
        assert found is not None
        distances.append(known.difference(frame, found.landmarks))
    assert distances[0] < 0.4 < 0.5 < distances[1]


def test_without_the_extra_nothing_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the optional package the measure is missing, which is no finding."""
    monkeypatch.setattr(face_identity, "_network", lambda: None)
    _, other = measured()
    assert other.face.identity_difference is None
    assert "identity_difference" not in {finding.measure for finding in judge_clip(other, None, LIMITS)}
