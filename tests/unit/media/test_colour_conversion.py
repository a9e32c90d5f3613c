"""Check the conversion of RGB to the levels that are encoded."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from s2v_tasks.errors import PermanentError
from s2v_tasks.media.encode import to_yuv
from s2v_tasks.media.ffmpeg import feed, file_url, pipe_input

_BLOCK, _ROWS, _COLUMNS = 16, 8, 12


def _bt709(rgb: npt.NDArray[np.uint8]) -> list[npt.NDArray[np.float64]]:
    """Return luma and colour differences of RGB levels by ITU-R BT.709, in the limited range."""
    red, green, blue = np.moveaxis(rgb / 255, -1, 0)
    luma = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    return [16 + 219 * luma, 128 + 224 * (blue - luma) / 1.8556, 128 + 224 * (red - luma) / 1.5748]


def test_levels_are_the_nearest_of_bt709(tmp_path: Path) -> None:
    """The levels of 96 colours are those of the standard, rounded."""
    colours = np.random.default_rng(1).integers(0, 256, (_ROWS, _COLUMNS, 3), np.uint8)
    picture = colours.repeat(_BLOCK, axis=0).repeat(_BLOCK, axis=1)
    height, width = picture.shape[:2]
    raw = pipe_input(format="rawvideo", pix_fmt="rgb24", s=f"{width}x{height}", framerate=16)
    output = to_yuv(raw.video).output(file_url(tmp_path / "levels"), format="rawvideo")
    feed(output, [picture.tobytes()], doing="converting", error=PermanentError)
    levels = np.split(np.fromfile(tmp_path / "levels", np.uint8), [height * width, height * width * 5 // 4])
    for plane, expected, block in zip(levels, _bt709(colours), (_BLOCK, _BLOCK // 2, _BLOCK // 2), strict=True):
        middles = plane.reshape(_ROWS * block, _COLUMNS * block)[block // 2 :: block, block // 2 :: block]
        assert np.abs(middles - expected).max() < 0.55
