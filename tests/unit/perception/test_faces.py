"""Check the detection of faces and their landmarks."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from s2v_tasks.errors import ConfigurationError
from s2v_tasks.perception import faces, landmarks
from s2v_tasks.perception.faces import FaceFinder
from tests.unit.perception.drawn import Person

SAMPLES = Path(__file__).parents[2] / "samples"


def portrait() -> np.ndarray:
    with Image.open(SAMPLES / "portrait.jpg") as picture:
        return np.asarray(picture.convert("RGB"))


def test_the_sample_portrait_has_one_frontal_face_with_a_closed_mouth(finder: FaceFinder) -> None:
    """Box and landmarks lie on the drawn face, whose centre is known."""
    (detection,) = finder.detect(portrait())
    face = finder.mesh(portrait(), detection)
    assert detection.score > 0.8
    assert face.confidence > 0.9
    assert np.allclose(landmarks.center(face.landmarks), (240, 300), atol=25)
    assert 200 < landmarks.face_height(face.landmarks) < 320
    assert landmarks.mouth_opening(face.landmarks) < 0.04
    assert abs(landmarks.turn(face.landmarks)) < 0.2
    assert landmarks.eye_opening(face.landmarks) > 0.2


def test_a_picture_without_a_person_has_no_face(finder: FaceFinder) -> None:
    """A noisy gradient has no face."""
    rng = np.random.default_rng(0)
    ramp = np.linspace(40, 220, 240)[:, None, None] + rng.normal(0, 12, (240, 320, 3))
    assert finder.detect(np.clip(ramp, 0, 255).astype(np.uint8)) == []
    assert finder.find(np.zeros((64, 64, 3), np.uint8)) is None


def test_two_people_are_two_faces(finder: FaceFinder) -> None:
    """Each face is found once, at its place."""
    pair = np.concatenate([Person(0).draw(0, 0), Person(5).draw(0, 0)], axis=1)
    found = sorted(float(face.center[0]) for face in finder.detect(pair))
    assert len(found) == 2
    assert np.allclose(found, [96, 288], atol=12)


@pytest.mark.parametrize("degrees", [-25, 25])
def test_landmarks_follow_a_tilted_head(finder: FaceFinder, degrees: int) -> None:
    """Opening and shape of a face do not change when the picture is rotated."""
    upright = Person(3).draw(0.8, 0)
    tilted = np.asarray(Image.fromarray(upright).rotate(degrees, Image.Resampling.BICUBIC, fillcolor=(128, 128, 128)))
    one, other = finder.find(upright), finder.find(tilted)
    assert one is not None
    assert other is not None
    difference = landmarks.mouth_opening(one.landmarks) - landmarks.mouth_opening(other.landmarks)
    assert abs(difference) < 0.02
    darker = landmarks.mouth_darkness(tilted, other.landmarks) - landmarks.mouth_darkness(upright, one.landmarks)
    assert abs(darker) < 0.01
    assert landmarks.shape_difference(other.landmarks, one.landmarks) < 0.03


def test_an_open_mouth_is_more_open_at_every_size(finder: FaceFinder) -> None:
    """The opening is relative to the height of the face, whatever the size of the picture."""
    for person in (Person(2), Person(2, width=384, height=480)):
        closed, half, wide = (finder.find(person.draw(opening, 0)) for opening in (0.0, 0.5, 1.0))
        assert closed is not None
        assert half is not None
        assert wide is not None
        values = [landmarks.mouth_opening(face.landmarks) for face in (closed, half, wide)]
        assert values == pytest.approx([0.02, 0.07, 0.15], abs=0.03)
        assert values[0] < values[1] < values[2]


@pytest.mark.parametrize("light", [1.0, 0.5])
def test_an_open_mouth_is_darker_than_its_surroundings_in_any_light(finder: FaceFinder, light: float) -> None:
    """The darkness is relative to the region of the mouth: at half the light it is the same."""
    darkness = []
    for opening in (0.0, 0.5, 1.0):
        picture = (Person(2).draw(opening, 0) * light).astype(np.uint8)
        face = finder.find(picture)
        assert face is not None
        darkness.append(landmarks.mouth_darkness(picture, face.landmarks))
    assert darkness == pytest.approx([0.06, 0.10, 0.14], abs=0.015)
    assert darkness[1] - darkness[0] > 0.03
    assert darkness[2] - darkness[1] > 0.03


def test_a_damaged_network_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model file with another SHA-256 is refused with the remedy."""
    (tmp_path / "face_detection_short_range.tflite").write_bytes(b"TFL3")
    monkeypatch.setattr(faces, "_NETWORKS", tmp_path)
    with pytest.raises(ConfigurationError, match=r"face_detection_short_range\.tflite is missing or damaged"):
        FaceFinder()
