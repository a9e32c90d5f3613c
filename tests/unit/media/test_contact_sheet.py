"""Check the contact sheet of a video."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from s2v_tasks.errors import PermanentError
from s2v_tasks.media.contact_sheet import contact_sheet
from s2v_tasks.media.encode import Frames, encode_clip

Moving = Callable[..., Frames]


def test_contact_sheet_shows_first_middle_and_last_frame_of_each_clip(tmp_path: Path) -> None:
    """The sheet has a row for each clip with its first, middle and last frame."""
    greys = np.arange(20, dtype=np.uint8) * 12
    encode_clip(np.broadcast_to(greys[:, None, None, None], (20, 64, 96, 3)), tmp_path / "a.mp4")
    contact_sheet(tmp_path / "a.mp4", [(0, 12), (12, 20)], tmp_path / "sheet.jpg")
    with Image.open(tmp_path / "sheet.jpg") as sheet:
        pixels = np.asarray(sheet.convert("L")).astype(int)
    assert pixels.shape == (2 * 188 + 8, 76 + 3 * 248 + 8)
    shown = [[pixels[8 + row * 188 + 100, 84 + column * 248 + 120] for column in range(3)] for row in range(2)]
    assert np.abs(np.array(shown) - np.array([[0, 5, 11], [12, 15, 19]]) * 12).max() <= 3


def test_contact_sheet_has_a_line_below_each_clip_where_there_are_notes(tmp_path: Path) -> None:
    """With notes each row is higher, and the pictures keep their size."""
    encode_clip(np.zeros((20, 64, 96, 3), np.uint8), tmp_path / "a.mp4")
    contact_sheet(tmp_path / "a.mp4", [(0, 12), (12, 20)], tmp_path / "sheet.jpg", notes=["lag 12 ms", ""])
    with Image.open(tmp_path / "sheet.jpg") as sheet:
        pixels = np.asarray(sheet.convert("L")).astype(int)
    assert pixels.shape == (2 * 206 + 8, 76 + 3 * 248 + 8)
    first, second = (pixels[8 + row * 206 + 182 : 8 + row * 206 + 200, 76:] for row in range(2))
    assert first.max() > 150
    assert second.max() < 60


def test_contact_sheet_of_a_short_video_is_refused(tmp_path: Path, moving: Moving) -> None:
    """A video that lacks frames of a clip is refused."""
    encode_clip(moving(8), tmp_path / "a.mp4")
    with pytest.raises(PermanentError, match="ends before frame 9"):
        contact_sheet(tmp_path / "a.mp4", [(0, 8), (9, 12)], tmp_path / "sheet.jpg")


@pytest.mark.parametrize(
    ("num_clips", "width", "height", "columns"), [(1000, 64, 78, 15), (1000, 112, 78, 14), (330, 112, 136, 8)]
)
def test_the_sheet_of_a_long_video_is_square(
    tmp_path: Path, num_clips: int, width: int, height: int, columns: int
) -> None:
    """Up to 1000 clips, the most of a job, fit into a JPEG that Pillow opens without a warning; none is left out."""
    encode_clip(np.full((20, 64, width, 3), 200, np.uint8), tmp_path / "a.mp4")
    contact_sheet(tmp_path / "a.mp4", [(0, 12), (12, 20)] * (num_clips // 2), tmp_path / "sheet.jpg")
    with Image.open(tmp_path / "sheet.jpg") as sheet:
        pixels = np.asarray(sheet.convert("L")).astype(int)
    assert 0.8 < pixels.shape[0] / pixels.shape[1] < 1.25
    row, column = divmod(num_clips - 1, columns)
    clip_height, clip_width = (pixels.shape[0] - 8) // (row + 1), (pixels.shape[1] - 8) // columns
    top, left = 8 + row * clip_height + 20, column * clip_width + 84
    assert abs(pixels[top + 2 : top + height - 2, left + 2 : left + 50] - 200).max() <= 3


def test_clips_side_by_side_are_in_the_order_of_reading(tmp_path: Path) -> None:
    """The second clip of a long video is on the right of the first."""
    greys = np.arange(50, dtype=np.uint8) * 5
    encode_clip(np.broadcast_to(greys[:, None, None, None], (50, 64, 64, 3)), tmp_path / "a.mp4")
    contact_sheet(tmp_path / "a.mp4", [(index, index + 1) for index in range(50)], tmp_path / "sheet.jpg")
    width, height = 76 + 3 * 168, 188
    with Image.open(tmp_path / "sheet.jpg") as sheet:
        pixels = np.asarray(sheet.convert("L")).astype(int)
    assert pixels.shape == (13 * height + 8, 4 * width + 8)
    shown = [[pixels[8 + row * height + 100, 84 + column * width + 80] for column in range(4)] for row in range(2)]
    assert np.abs(np.array(shown) - np.arange(8).reshape(2, 4) * 5).max() <= 3
