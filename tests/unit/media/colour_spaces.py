"""Pictures of skin in several colour spaces, and their profiles."""

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from s2v_tasks.media.image import normalise_image
from s2v_tasks.media.image_colour import _built
from tests.unit.media.pictures import chunk

Colours = npt.NDArray[Any]


SKIN = [(224, 172, 140), (120, 72, 50), (255, 219, 190), (90, 140, 80), (40, 42, 45), (255, 255, 255), (0, 0, 0)]


D65, D50 = (0.3127, 0.3290), (0.3457, 0.3585)


# Of each space: x and y of its white and primaries, its gamma (0: the curve of sRGB), and linear sRGB in it.
SPACES: dict[str, tuple[tuple[float, ...], float, Colours]] = {
    "Display P3": (
        (*D65, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060), 0,
        np.array([[0.82246, 0.17754, 0], [0.03319, 0.96681, 0], [0.01708, 0.07240, 0.91052]]),
    ),
    "Adobe RGB": (
        (*D65, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06), 2.19921875,
        np.array([[0.71513, 0.28487, 0], [0, 1, 0], [0, 0.04117, 0.95883]]),
    ),
    "ProPhoto": (
        (*D50, 0.7347, 0.2653, 0.1596, 0.8404, 0.0366, 0.0001), 1.8,
        np.array([[0.52928, 0.33015, 0.14057], [0.09837, 0.87347, 0.02816], [0.01688, 0.11768, 0.86544]]),
    ),
    "BT.2020": (
        (*D65, 0.708, 0.292, 0.170, 0.797, 0.131, 0.046), 0,
        np.array([[0.62740, 0.32928, 0.04331], [0.06910, 0.91954, 0.01136], [0.01639, 0.08801, 0.89559]]),
    ),
}  # fmt: skip


SRGB_CURVE = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)


def linear(levels: Any) -> Colours:
    value = np.asarray(levels) / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def srgb(light: Any) -> Colours:
    light = np.asarray(light)
    return 255 * np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)


def light_of(points: tuple[float, ...]) -> Colours:
    """Return XYZ of red, green and blue (columns) whose sum is the white D65."""
    xyz = np.array([(x / y, 1, (1 - x - y) / y) for x, y in zip(points[::2], points[1::2], strict=True)]).T
    white = np.array([D65[0] / D65[1], 1, (1 - sum(D65)) / D65[1]])
    return xyz * np.linalg.solve(xyz, white)


def picture_in(space: str) -> Image.Image:
    """Return fields of the colours of SKIN, as a camera writes them in `space`."""
    _, gamma, matrix = SPACES[space]
    light = linear(SKIN) @ matrix.T
    levels = 255 * light ** (1 / gamma) if gamma else srgb(light)
    fields = np.rint(levels).astype(np.uint8)
    return Image.fromarray(np.repeat(np.repeat(fields[None], 16, axis=1), 64, axis=0))


def profile_of(space: str) -> bytes:
    points, gamma, _ = SPACES[space]
    return _built((gamma,) if gamma else SRGB_CURVE, points, "RGB")


def fields(content: bytes, tmp_path: Path, warning: str | None = None) -> Colours:
    """Return the mean colour of each field of the read picture, whose warning must contain `warning`."""
    (tmp_path / "photo").write_bytes(content)
    info = normalise_image(tmp_path / "photo", tmp_path / "image.png")
    assert (warning in info.warning) if warning and info.warning else (warning, info.warning) == (None, None)
    levels = np.asarray(Image.open(tmp_path / "image.png")).astype(float)
    return np.array([levels[4:-4, at + 4 : at + 12].mean(axis=(0, 1)) for at in range(0, levels.shape[1] - 15, 16)])


def icc_chunk(profile: bytes) -> bytes:
    return chunk(b"iCCP", b"name\0\0" + zlib.compress(profile))
