"""Seams: measure jumps of the picture between the last frame of a clip and the first frame of the next."""

from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
from PIL import Image

from s2v_tasks.perception.faces import Picture

# Phase correlation is computed at this width: a jump of one pixel of a 1024 pixel wide video is still 0.4 pixels here.
_WIDTH = 384
# Motion below this cannot be distinguished from noise, in shares of the width of the picture.
_LEAST_SHIFT = 0.0006


@dataclass(frozen=True)
class Spectrum:
    """Input of `shift` from a frame: the Fourier transform of its windowed luma, and its size (width, height) there."""

    values: npt.NDArray[np.complex64]
    size: tuple[int, int]


def spectrum(picture: Picture) -> Spectrum:
    """Return the spectrum of a frame u8 RGB `[H,W,3]`, with a Hann window."""
    height, width = picture.shape[:2]
    size = (min(width, _WIDTH), max(1, round(min(width, _WIDTH) * height / width)))
    grey = np.asarray(Image.fromarray(picture).convert("L").resize(size, Image.Resampling.BOX), dtype=np.float32)
    return Spectrum(np.asarray(np.fft.rfft2((grey - grey.mean()) * _window(size))), size)


@cache
def _window(size: tuple[int, int]) -> npt.NDArray[np.float32]:
    """Return the Hann window `[height, width]` of a size (width, height)."""
    return np.outer(np.hanning(size[1]), np.hanning(size[0])).astype(np.float32)


def shift(one: Spectrum, other: Spectrum) -> float:
    """Return by how much the picture as a whole moves between two frames, as a share of its width.

    Phase correlation with a parabola through the peak: exact to about a tenth of a pixel. A change of colour or
    brightness does not count. A moving mouth on a still picture gives 0.
    """
    cross = one.values * np.conj(other.values)
    surface = np.fft.irfft2(cross / (np.abs(cross) + np.float32(1e-9)), s=one.size[::-1])
    row, column = np.unravel_index(int(np.argmax(surface)), surface.shape)
    rows, columns = surface.shape
    y = _peak(surface[np.arange(row - 1, row + 2) % rows, column]) + _signed(int(row), rows)
    x = _peak(surface[row, np.arange(column - 1, column + 2) % columns]) + _signed(int(column), columns)
    return float(np.hypot(x, y)) / one.size[0]


def jump(seam_shift: float, inside_shifts: npt.NDArray[np.float64]) -> float:
    """Return the shift at a seam over the 95th percentile of the shifts inside both clips; above 3 it is visible."""
    usual = float(np.percentile(inside_shifts, 95)) if len(inside_shifts) else 0.0
    return seam_shift / max(usual, _LEAST_SHIFT)


def _signed(index: int, length: int) -> int:
    return index if index <= length // 2 else index - length


def _peak(values: npt.NDArray[np.float64]) -> float:
    """Return the position, -0.5..0.5, of the top of a parabola through three values around a maximum."""
    before, top, after = values
    curvature = before - 2 * top + after
    return 0.0 if curvature >= 0 else float(np.clip(0.5 * (before - after) / curvature, -0.5, 0.5))
