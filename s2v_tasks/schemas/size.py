"""`size` of a request: W*H in pixels, and its bounds."""

import re

SIZE_PATTERN = r"^[0-9]{3,4}\*[0-9]{3,4}$"  # not \d, which takes the digits of all scripts
SIDE_STEP, MIN_SIDE, MAX_SIDE, MAX_AREA = 32, 128, 1280, 1280 * 720


def parse_size(size: str) -> tuple[int, int]:
    """Width and height in pixels of `W*H`; ValueError when a side or the area is out of bounds."""
    if not re.fullmatch(SIZE_PATTERN, size):
        raise ValueError(f"expected W*H such as 480*832, each side a multiple of {SIDE_STEP} in the digits 0 to 9")
    width, height = (int(side) for side in size.split("*"))
    for side in (width, height):
        if side % SIDE_STEP or not MIN_SIDE <= side <= MAX_SIDE:
            raise ValueError(
                f"expected sides that are multiples of {SIDE_STEP} from {MIN_SIDE} to {MAX_SIDE}, such as 480*832"
            )
    if width * height > MAX_AREA:
        raise ValueError(f"has {width * height} pixels: expected at most 1280*720 = {MAX_AREA}")
    return width, height
