"""Check the fit of reference pictures and pose frames to the size of the video."""

import numpy as np
import pytest
import torch

from s2v_tasks.engine.images import Compat, fit_image, fit_pose, frames_to_pixels, pad_pose, to_pixels, to_u8
from s2v_tasks.engine.images import reference_pose_step as pose_step
from s2v_tasks.errors import PermanentError


def _white(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), 255, dtype=np.uint8)


@pytest.mark.parametrize(("height", "width"), [(480, 832), (100, 31), (31, 100), (64, 128), (1, 1)])
def test_corrected_fit_never_adds_borders(height: int, width: int) -> None:
    """A white picture of any shape is white everywhere after the corrected fit."""
    fitted = fit_image(_white(height, width), 128, 64, compat="corrected")
    assert fitted.shape == (64, 128, 3)
    assert fitted.min() == 255


def test_reference_fit_pads_with_black() -> None:
    """The reference's fit leaves black bars of 28 pixels on a plain 480x832 picture at 448x832."""
    fitted = fit_image(_white(832, 480), 448, 832, compat="reference")
    assert fitted.shape == (832, 448, 3)
    columns = fitted.max(axis=(1, 2))
    assert (columns[:28] == 0).all()
    assert (columns[28:-28] == 255).all()
    assert (columns[-28:] == 0).all()


def test_corrected_fit_keeps_the_centre_and_the_proportions() -> None:
    """The crop is centred and the picture is not stretched: a centred square stays a centred square."""
    image = np.zeros((120, 400, 3), dtype=np.uint8)
    image[30:90, 170:230] = 255
    fitted = fit_image(image, 64, 64, compat="corrected")
    rows, columns = (np.flatnonzero(fitted[..., 0].max(axis=axis) > 127) for axis in (1, 0))
    assert (rows[0], rows[-1]) == (columns[0], columns[-1]) == (16, 47)


def test_pixels_span_minus_one_to_one() -> None:
    """Black is -1, white is 1, and the axes are batch, colour, time, row, column."""
    image = np.zeros((2, 3, 3), dtype=np.uint8)
    image[0, 1, 2] = 255
    pixels = to_pixels(image)
    assert pixels.shape == (1, 3, 1, 2, 3)
    assert pixels[0, 2, 0, 0, 1] == 1
    assert pixels.sum() == -16


@pytest.mark.parametrize("compat", ["corrected", "reference"])
def test_pose_of_the_right_size_is_not_resampled(compat: Compat) -> None:
    """Pose frames of the right size only change their number format."""
    frames = np.random.default_rng(0).integers(0, 256, (3, 64, 96, 3), dtype=np.uint8)
    torch.testing.assert_close(fit_pose(frames, 96, 64, compat=compat), frames_to_pixels(frames), rtol=0, atol=0)


def test_pose_covers_or_pads_with_grey() -> None:
    """A pose that is too narrow covers the frame, or gets grey borders as in the reference."""
    frames = np.stack([_white(90, 60)] * 2)
    covered = fit_pose(frames, 64, 64, compat="corrected")
    assert covered.shape == (1, 3, 2, 64, 64)
    torch.testing.assert_close(covered, torch.ones_like(covered))
    padded = fit_pose(frames, 128, 64, compat="reference")
    assert padded[..., :32].abs().max() == 0
    torch.testing.assert_close(padded[..., 32:96], torch.ones(1, 3, 2, 64, 64))


def test_short_pose_ends_in_black() -> None:
    """Missing pose frames are black, and surplus frames are dropped."""
    pose = torch.zeros(1, 3, 5, 4, 4)
    assert pad_pose(pose, 7)[0, 0, :, 0, 0].tolist() == [0, 0, 0, 0, 0, -1, -1]
    assert pad_pose(pose, 4).shape[2] == 4


def test_reference_pose_step_is_an_integer() -> None:
    """The reference samples a pose video at an integer step, halves rounded to even."""
    assert [pose_step(fps) for fps in (8, 16, 24, 25, 30, 40, 60)] == [1, 1, 2, 2, 2, 2, 4]


@pytest.mark.parametrize(
    "image",
    [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)],
)
def test_anything_but_rgb_is_refused(image: np.ndarray) -> None:
    """Grey, transparent, float and empty arrays are permanent errors that name shape and type."""
    with pytest.raises(PermanentError, match="shape"):
        fit_image(image, 64, 64, compat="corrected")


def test_bytes_are_truncated() -> None:
    """Values between two levels get the lower one, as in the reference, and values beyond the range its ends."""
    levels = torch.tensor([-0.5, 0.0, 100.1, 100.9, 255.0, 300.0])
    pixels = (levels / 255 * 2 - 1).view(1, 1, 1, 1, 6).expand(-1, 3, -1, -1, -1)
    assert to_u8(pixels)[0, 0, :, 0].tolist() == [0, 0, 100, 100, 255, 255]


def test_pixels_that_are_not_finite_are_refused() -> None:
    """One NaN in a decoded frame is an error, because as a byte it would be black."""
    pixels = torch.zeros(1, 3, 2, 4, 4)
    assert to_u8(pixels).shape == (2, 4, 4, 3)
    pixels[0, 1, 1, 2, 3] = torch.nan
    with pytest.raises(PermanentError, match="decoded frames have NaN"):
        to_u8(pixels)
