"""Colour in CIE Lab, contrast and sharpness of pictures."""

import numpy as np
import numpy.typing as npt
from PIL import Image

from s2v_tasks.perception.faces import Picture, Points
from s2v_tasks.perception.landmarks import center, face_height

Lab = npt.NDArray[np.float64]
_TO_XYZ = np.array([
    [0.4124564, 0.3575761, 0.1804375],
    [0.2126729, 0.7151522, 0.0721750],
    [0.0193339, 0.1191920, 0.9503041],
])
# Linear light of each level of sRGB.
_SRGB = np.arange(256) / 255
_LINEAR = np.where(_SRGB <= 0.04045, _SRGB / 12.92, ((_SRGB + 0.055) / 1.055) ** 2.4)
_WHITE_D65 = np.array([0.95047, 1.0, 1.08883])
_EPSILON, _KAPPA = 216 / 24389, 24389 / 27
_LUMA = np.array([0.2126, 0.7152, 0.0722])
# The background is sampled in a band along the left, right and upper border, as wide as this share of the picture.
_BORDER = 0.08
# Sharpness is measured in the face at one size, so that it does not depend on the size of the face in the picture.
_FACE_SIDE = 160


def to_lab(rgb: npt.NDArray[np.uint8]) -> Lab:
    """Convert sRGB pixels `[...,3]` to CIE Lab (D65): L 0..100, a and b about -100..100."""
    xyz = _LINEAR[rgb] @ _TO_XYZ.T / _WHITE_D65
    f = np.where(xyz > _EPSILON, np.cbrt(xyz), (_KAPPA * xyz + 16) / 116)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], axis=-1)


def mean_lab(rgb: npt.NDArray[np.uint8]) -> Lab:
    """Return the mean colour `[3]` in Lab of pixels `[n,3]`; NaN if there are none."""
    return np.asarray(to_lab(rgb).mean(axis=0)) if len(rgb) else np.full(3, np.nan)


def difference(one: Lab, other: Lab) -> float:
    """Return the distance of two Lab colours (CIE76): about 2 is just visible side by side, 10 is obvious."""
    return float(np.linalg.norm(one - other))


def background_pixels(picture: Picture) -> npt.NDArray[np.uint8]:
    """Return every fourth pixel `[n,3]` of a band along the left, right and upper border of the picture."""
    height, width = picture.shape[:2]
    band = max(4, round(_BORDER * min(height, width)))
    sides = picture[: height * 2 // 3]  # shoulders touch the border further down
    parts = (picture[:band, ::2][::2], sides[::2, :band:2], sides[::2, -band::2])
    return np.concatenate([part.reshape(-1, 3) for part in parts])


def contrast(picture: Picture) -> float:
    """Return the standard deviation of the luma, 0..127, over a quarter of the pixels."""
    return float((picture[::2, ::2].astype(np.float32) @ _LUMA.astype(np.float32)).std(dtype=np.float64))


def sharpness(picture: Picture, landmarks: Points) -> float:
    """Return the energy of fine detail in the face over its contrast; compare only faces at one picture size.

    The face is resampled to 160x160; detail is the Laplacian of its luma. Blur lowers it, noise raises it.
    """
    half = 0.55 * face_height(landmarks)
    x, y = center(landmarks)
    box = (x - half, y - half, x + half, y + half)
    face = Image.fromarray(picture).resize(
        (_FACE_SIDE, _FACE_SIDE), Image.Resampling.BICUBIC, box=_inside(box, picture)
    )
    luma = np.asarray(face, dtype=np.float64) @ _LUMA
    laplacian = 4 * luma[1:-1, 1:-1] - luma[:-2, 1:-1] - luma[2:, 1:-1] - luma[1:-1, :-2] - luma[1:-1, 2:]
    return float(np.sqrt(np.mean(laplacian**2)) / (luma.std() + 1.0))


def _inside(box: tuple[float, float, float, float], picture: Picture) -> tuple[float, float, float, float]:
    height, width = picture.shape[:2]
    left, right = max(0.0, box[0]), min(float(width), box[2])
    top, bottom = max(0.0, box[1]), min(float(height), box[3])
    # A face at the very border keeps at least one pixel, so that resampling has something to read.
    return min(left, width - 1.0), min(top, height - 1.0), max(right, left + 1.0), max(bottom, top + 1.0)
