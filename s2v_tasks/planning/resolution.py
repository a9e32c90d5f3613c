"""Size of the video: the aspect ratio follows the picture, the request bounds the area (spec d.1)."""

import math

from s2v_tasks.errors import PermanentError
from s2v_tasks.schemas.request_fields import parse_size

SIDE_MULTIPLE = 64
SCALE_STEPS = 100
SMALLEST_SCALE = 0.1
MAX_ASPECT = 4


def output_size(height: int, width: int, max_area: int) -> tuple[int, int]:
    """Return (height, width) that the reference renders for a picture of `height` x `width` and an area limit.

    Sides are multiples of 64. For extreme aspect ratios the rule yields 0; `plan_size` refuses those pictures.
    """
    largest, smallest = _scale_range(height, width, max_area)
    for step in range(SCALE_STEPS):
        scale = largest - (largest - smallest) * step / SCALE_STEPS
        new_height, new_width = _rounded_up(int(height * scale)), _rounded_up(int(width * scale))
        if new_height * new_width <= max_area:
            return new_height, new_width
    return _floored_size(height, width, max_area)


def plan_size(image_width: int, image_height: int, size: str) -> tuple[int, int]:
    """Return (width, height) of the video for a picture and the size `W*H` of the request.

    Raises PermanentError for a picture with an aspect ratio above 4: the rule would cut most of it away, or yield a
    side of 0.
    """
    if max(image_width, image_height) > MAX_ASPECT * min(image_width, image_height):
        raise PermanentError(
            f"The picture is {image_width} x {image_height} pixels: expected a longer side of at most {MAX_ASPECT} "
            "times the shorter one; crop the picture around the speaker."
        )
    size_width, size_height = parse_size(size)
    height, width = output_size(image_height, image_width, size_width * size_height)
    return width, height


def cropped_share(image_width: int, image_height: int, width: int, height: int) -> float:
    """Return the share of the picture, 0..1, that is cut away when it is scaled to cover `width` x `height`."""
    scale = max(width / image_width, height / image_height)
    return 1 - (width * height) / (image_width * image_height * scale**2)


def _scale_range(height: int, width: int, max_area: int) -> tuple[float, float]:
    """Return the (largest, smallest) scale to try; the factor 2 under the root is the reference's."""
    area = height * width
    if area <= max_area:
        return 1.0, SMALLEST_SCALE
    slack = SIDE_MULTIPLE - 1
    b = slack * (height + width)
    root = math.sqrt(b**2 - 2 * area * (slack**2 - max_area))
    return math.sqrt(max_area / area), (root - b) / (2 * area)


def _floored_size(height: int, width: int, max_area: int) -> tuple[int, int]:
    aspect = width / height
    new_width = _floored(math.sqrt(max_area * aspect))
    new_height = _floored(math.sqrt(max_area / aspect))
    if new_width >= width or new_height >= height:
        return _floored(height), _floored(width)
    return new_height, new_width


def _rounded_up(side: int) -> int:
    return -(-side // SIDE_MULTIPLE) * SIDE_MULTIPLE


def _floored(side: float) -> int:
    return int(side // SIDE_MULTIPLE) * SIDE_MULTIPLE
