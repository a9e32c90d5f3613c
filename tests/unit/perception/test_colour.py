"""Check colour, contrast and sharpness against known values."""

import numpy as np
import pytest
from PIL import Image, ImageFilter

from s2v_tasks.perception import colour, landmarks
from s2v_tasks.perception.faces import FaceFinder
from tests.unit.perception.drawn import Person, blurred


@pytest.mark.parametrize(
    ("rgb", "lab"),
    [
        ((255, 255, 255), (100.0, 0.0, 0.0)),
        ((0, 0, 0), (0.0, 0.0, 0.0)),
        ((255, 0, 0), (53.24, 80.09, 67.20)),
        ((0, 0, 255), (32.30, 79.19, -107.86)),
        ((119, 119, 119), (50.03, 0.0, 0.0)),
    ],
)
def test_lab_of_known_colours(rgb: tuple[int, int, int], lab: tuple[float, float, float]) -> None:
    """sRGB colours have their published Lab values under D65."""
    assert colour.to_lab(np.array(rgb, np.uint8)) == pytest.approx(lab, abs=0.02)


def test_sharpness_falls_with_each_step_of_blur(finder: FaceFinder) -> None:
    """A blur of 1, 2 and 4 pixels lowers the sharpness each time, at 2 to below half."""
    sharp = Person(4, width=384, height=480).draw(0.4, 0)
    face = finder.find(sharp)
    assert face is not None
    values = [colour.sharpness(blurred(sharp, radius), face.landmarks) for radius in (0, 1, 2, 4)]
    assert values == sorted(values, reverse=True)
    assert values[2] < 0.5 * values[0]


def test_sharpness_does_not_depend_on_brightness(finder: FaceFinder) -> None:
    """Half of the light changes the sharpness by less than a tenth."""
    bright = Person(4).draw(0.4, 0)
    face = finder.find(bright)
    assert face is not None
    dark = (bright // 2).astype(np.uint8)
    ratio = colour.sharpness(dark, face.landmarks) / colour.sharpness(bright, face.landmarks)
    assert ratio == pytest.approx(1, abs=0.1)


def test_skin_and_background_are_taken_from_skin_and_background(finder: FaceFinder) -> None:
    """Skin is measured on cheeks and forehead, and background along the border."""
    picture = Person(2).draw(0, 0)
    face = finder.find(picture)
    assert face is not None
    wall = picture[2, 2]
    assert (colour.background_pixels(picture) == wall).all()
    skin = landmarks.skin_pixels(picture, face.landmarks)
    assert len(np.unique(skin, axis=0)) <= 4  # one colour, and at most an edge
    assert colour.difference(colour.mean_lab(skin), colour.mean_lab(picture[84:86, 96:98].reshape(-1, 3))) < 3


def test_pixels_outside_the_picture_are_left_out() -> None:
    """A patch beyond the border is empty, one across it is cut."""
    picture = np.zeros((20, 30, 3), np.uint8)
    assert landmarks.patch(picture, np.array([-10.0, 5.0]), 2).size == 0
    assert landmarks.patch(picture, np.array([0.0, 0.0]), 2).shape[:2] == (3, 3)


def test_contrast_is_the_deviation_of_the_luma() -> None:
    """Black and white halves have 127.5, a flat picture has 0, and blur lowers the contrast."""
    halves = np.zeros((32, 32, 3), np.uint8)
    halves[:, 16:] = 255
    assert colour.contrast(halves) == pytest.approx(127.5)
    soft = np.asarray(Image.fromarray(halves).filter(ImageFilter.GaussianBlur(4)))
    assert colour.contrast(soft) < 120
    assert colour.contrast(np.full((8, 8, 3), 77, np.uint8)) == pytest.approx(0, abs=1e-9)
