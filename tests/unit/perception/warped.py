"""A photograph that talks: its lower lip and chin move down with the mouth opening, and the gap is dark."""

from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from s2v_tasks.perception.faces import FaceFinder
from s2v_tasks.perception.landmarks import face_height
from tests.unit.perception.drawn import FPS, Picture

SAMPLES = Path(__file__).parents[2] / "samples"
_SIZE = (384, 480)  # of the warped picture, which is reduced to half of it
_WIDEST = 0.11  # gap of the open mouth, in shares of the height of the face
_DARK = (58, 18, 22)
_SWAY_PIXELS = (3.0, 2.0)
Map = npt.NDArray[np.float32]


class Photograph:
    """The frames of a picture file of a face, 192x240 pixels."""

    def __init__(self, name: str) -> None:
        with Image.open(SAMPLES / name) as image:
            picture = np.asarray(image.convert("RGB").resize(_SIZE, Image.Resampling.LANCZOS))
        face = FaceFinder().find(picture)
        assert face is not None
        self._picture, points = picture.astype(np.float32), face.landmarks
        self._height = face_height(points)
        self._corners, self._chin = (points[61], points[291]), points[152]
        self._mouth = (points[13] + points[14]) / 2

    def frames(self, mouth: npt.NDArray[np.float64]) -> list[Picture]:
        """Return a frame for each mouth opening 0..1, with a swaying picture."""
        return [self.draw(float(opening), index / FPS) for index, opening in enumerate(mouth)]

    def draw(self, opening: float, seconds: float) -> Picture:
        """Return one picture u8 RGB `[H,W,3]`."""
        y, x = (axis.astype(np.float32) for axis in np.mgrid[0 : _SIZE[1], 0 : _SIZE[0]])
        right, left = self._corners
        middle_x, middle_y = self._mouth
        slope = (left - right)[1] / (left - right)[0]
        below = y - middle_y - slope * (x - middle_x)
        across = (x - middle_x) / (0.45 * np.linalg.norm(left - right))
        lip, jaw = np.sqrt(np.clip(1 - across**2, 0, 1)), 0.7 * np.exp(-((across / 1.6) ** 4))
        gap = opening * _WIDEST * self._height
        fade = np.clip(1 - (below - gap) / (self._chin[1] - middle_y + 0.35 * self._height), 0, 1)
        warped = _sampled(self._picture, x, y - np.where(below > 0, gap * np.maximum(lip, jaw) * fade, 0))
        if opening > 0.02:
            warped[(below > 0) & (below < gap * lip)] = _DARK
        sway = (_SWAY_PIXELS[0] * np.sin(1.1 * seconds), _SWAY_PIXELS[1] * np.cos(1.4 * seconds))
        return np.asarray(Image.fromarray(_sampled(warped, x - sway[0], y - sway[1]).astype(np.uint8)).reduce(2))


@cache
def photograph(name: str) -> Photograph:
    """Return a photograph of tests/samples."""
    return Photograph(name)


def _sampled(picture: Map, x: Map, y: Map) -> Map:
    """Return the picture at these positions, bilinear, with repeated borders."""
    height, width = picture.shape[:2]
    x, y = np.clip(x, 0, width - 1.001), np.clip(y, 0, height - 1.001)
    column, row = x.astype(int), y.astype(int)
    right, down = (x - column)[..., None], (y - row)[..., None]
    above = picture[row, column] * (1 - right) + picture[row, column + 1] * right
    under = picture[row + 1, column] * (1 - right) + picture[row + 1, column + 1] * right
    return np.asarray(above * (1 - down) + under * down, dtype=np.float32)
