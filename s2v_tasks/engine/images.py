"""Convert pictures to the pixels of the VAE, and back (spec d.2, d.4, d.7).

`compat="corrected"` scales to cover and crops. `compat="reference"` repeats the reference: the shorter side is fitted
to the shorter target side, so that about half of all pictures get borders, black for the image and grey for the pose.

Shapes: B batch (1), C channels (3), T frames, H x W pixels. Pixels are float32 in [-1, 1]; u8 is uint8 in [0, 255].
"""

from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from s2v_tasks.errors import PermanentError

Compat = Literal["corrected", "reference"]
ImageU8 = NDArray[np.uint8]

_BLACK_PIXEL = -1.0


def fit_image(image_u8_HWC: ImageU8, width: int, height: int, *, compat: Compat) -> ImageU8:
    """Fit an RGB image to [height, width, 3], antialiased bilinear.

    Raises PermanentError if the array is not an RGB image of 8 bits.
    """
    _check_rgb(image_u8_HWC, dimensions=3)
    image = Image.fromarray(image_u8_HWC)
    if compat == "corrected":
        box = _cover_box(image.width, image.height, width, height)
        return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR, box=box))
    resized = image.resize(_short_side_size(image.width, image.height, width, height), Image.Resampling.BILINEAR)
    return _crop_or_pad(np.asarray(resized), width, height)


def to_pixels(image_u8_HWC: ImageU8) -> Tensor:
    """Return an image as input of the VAE: [1, 3, 1, H, W] in [-1, 1]."""
    return frames_to_pixels(image_u8_HWC[None])


def frames_to_pixels(frames_u8_THWC: ImageU8) -> Tensor:
    """Return frames as input of the VAE: [1, 3, T, H, W] in [-1, 1]."""
    pixels_THWC = torch.tensor(frames_u8_THWC).to(torch.float32) / 255 * 2 - 1
    return pixels_THWC.permute(3, 0, 1, 2)[None].contiguous()


def is_finite(values: Tensor) -> bool:
    """Return True if no value is NaN or infinite. The host waits for the device."""
    return bool(values.isfinite().all())


def to_u8(pixels_BCTHW: Tensor) -> Tensor:
    """Convert the output of the VAE to bytes [T, H, W, 3], truncated as in the reference (spec d.7).

    Raises PermanentError for values that are not finite, which would be shown as black.
    """
    if not is_finite(pixels_BCTHW):
        raise PermanentError(
            "decoded frames have NaN or infinite values, expected finite numbers. The weights of the VAE are damaged "
            "or overflow: compare their checksum, and use S2V_VAE_PRECISION=float32."
        )
    bytes_BCTHW = ((pixels_BCTHW.clamp(-1, 1) + 1) / 2 * 255).to(torch.uint8)
    return rearrange(bytes_BCTHW, "1 c t h w -> t h w c").contiguous()


def fit_pose(frames_u8_THWC: ImageU8, width: int, height: int, *, compat: Compat) -> Tensor:
    """Fit pose frames of any size to pixels [1, 3, T, height, width], without intermediate 8-bit rounding.

    The frames are at 16 fps; there are none if the pose video has ended. Raises PermanentError if the array is not RGB
    frames of 8 bits.
    """
    _check_rgb(frames_u8_THWC, dimensions=4)
    if not len(frames_u8_THWC):
        return torch.empty(1, 3, 0, height, width)
    source_height, source_width = frames_u8_THWC.shape[1:3]
    pixels_TCHW = frames_to_pixels(frames_u8_THWC)[0].transpose(0, 1)
    if compat == "corrected":
        scale = max(width / source_width, height / source_height)
        size = (max(width, round(source_width * scale)), max(height, round(source_height * scale)))
    else:
        size = _short_side_size(source_width, source_height, width, height)
    if size != (source_width, source_height):
        pixels_TCHW = F.interpolate(pixels_TCHW, size=size[::-1], mode="bilinear", antialias=True, align_corners=False)
    left, right, top, bottom = _margins(size[0], size[1], width, height)
    return F.pad(pixels_TCHW, (left, right, top, bottom)).transpose(0, 1)[None].contiguous()


def pad_pose(pixels_BCTHW: Tensor, num_frames: int) -> Tensor:
    """Return the first `num_frames` pose frames; a pose video that is too short ends in black."""
    missing = max(0, num_frames - pixels_BCTHW.shape[2])
    return F.pad(pixels_BCTHW[:, :, :num_frames], (0, 0, 0, 0, 0, missing), value=_BLACK_PIXEL)


def reference_pose_step(frames_per_second: float) -> int:
    """Return the integer step of the reference over a pose video; 25 fps then plays 1.28 times too fast."""
    return max(1, round(frames_per_second / 16))


def _cover_box(source_width: int, source_height: int, width: int, height: int) -> tuple[float, float, float, float]:
    """Return the largest centred part of the source with the aspect ratio of the target, in fractions of a pixel."""
    scale = max(width / source_width, height / source_height)
    box_width = min(source_width, width / scale)
    box_height = min(source_height, height / scale)
    left, top = (source_width - box_width) / 2, (source_height - box_height) / 2
    return left, top, left + box_width, top + box_height


def _short_side_size(source_width: int, source_height: int, width: int, height: int) -> tuple[int, int]:
    """Return (width, height) before the crop of the reference: the shorter side fits, the longer one is truncated."""
    short = min(width, height)
    if source_width <= source_height:
        return short, int(short * source_height / source_width)
    return int(short * source_width / source_height), short


def _margins(source_width: int, source_height: int, width: int, height: int) -> tuple[int, int, int, int]:
    """Return the pixels to add (negative: to cut) at left, right, top and bottom for a centred crop."""
    left, right = _margin_pair(source_width, width)
    top, bottom = _margin_pair(source_height, height)
    return left, right, top, bottom


def _margin_pair(source: int, target: int) -> tuple[int, int]:
    before = (target - source) // 2 if source < target else -round((source - target) / 2)
    return before, target - source - before


def _crop_or_pad(image_u8_HWC: ImageU8, width: int, height: int) -> ImageU8:
    source_height, source_width = image_u8_HWC.shape[:2]
    left, right, top, bottom = _margins(source_width, source_height, width, height)
    pad = [(max(0, top), max(0, bottom)), (max(0, left), max(0, right)), (0, 0)]
    padded = np.pad(image_u8_HWC, pad)
    y, x = max(0, -top), max(0, -left)
    return padded[y : y + height, x : x + width]


def _check_rgb(array: ImageU8, *, dimensions: int) -> None:
    if array.ndim != dimensions or array.shape[-1] != 3 or array.dtype != np.uint8 or 0 in array.shape[-3:]:
        layout = "[height, width, 3]" if dimensions == 3 else "[frames, height, width, 3]"
        raise PermanentError(
            f"picture of shape {list(array.shape)} and type {array.dtype}: convert it to 8-bit RGB {layout}"
        )
