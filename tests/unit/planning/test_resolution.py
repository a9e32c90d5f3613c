"""Check the size of the video."""

import json
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from s2v_tasks.errors import PermanentError
from s2v_tasks.planning.resolution import _floored_size, cropped_share, output_size, plan_size

GOLDEN = Path(__file__).parents[2] / "golden" / "size_cases.json"
SIDES = st.integers(32, 8000)
SIZES = st.sampled_from(["128*128", "128*192", "256*256", "480*832", "832*480", "1024*704", "1280*704"])


def test_output_size_equals_the_reference() -> None:
    """Every row of the golden table from the reference is reproduced exactly."""
    rows = json.loads(GOLDEN.read_text())["rows"]
    assert len(rows) > 800
    assert [list(output_size(height, width, area)) for height, width, area, _ in rows] == [row[3] for row in rows]


def test_output_size_keeps_the_zero_of_the_reference() -> None:
    """The reference's rule gives a side of 0 for an extreme picture, and so does ours."""
    assert output_size(1, 30000, 480 * 832) == (0, 29760)


def test_a_picture_of_just_the_area_is_not_scaled_by_it() -> None:
    """A picture of exactly the area is scaled down from 1, as a smaller picture is."""
    assert output_size(600, 1536, 1280 * 720) == (576, 1472)


@pytest.mark.parametrize(
    ("image", "size", "expected"),
    [
        ((832, 480), "480*832", (832, 448)),
        ((480, 832), "832*480", (448, 832)),
        ((4000, 3000), "1024*704", (960, 704)),
        ((200, 200), "480*832", (256, 256)),
        ((720, 1280), "1280*704", (704, 1280)),
        ((400, 100), "480*832", (448, 128)),
    ],
)
def test_plan_size_follows_the_picture(image: tuple[int, int], size: str, expected: tuple[int, int]) -> None:
    """The picture decides about upright or wide, whatever the order of sides in `size`."""
    assert plan_size(*image, size) == expected


@settings(max_examples=2000, deadline=None)
@given(SIDES, SIDES, SIZES)
def test_plan_size_is_renderable(image_width: int, image_height: int, size: str) -> None:
    """A picture up to four times as long as wide gets sides of at least 64 pixels, within the area of the size."""
    assume(max(image_width, image_height) <= 4 * min(image_width, image_height))
    width, height = plan_size(image_width, image_height, size)
    bound = [int(side) for side in size.split("*")]
    assert width % 64 == height % 64 == 0
    assert min(width, height) >= 64
    assert max(width, height) <= 5 * min(width, height)
    assert width * height <= bound[0] * bound[1]
    assert cropped_share(image_width, image_height, width, height) < 0.55


@pytest.mark.parametrize("image", [(401, 100), (100, 401), (30000, 1)])
def test_extreme_pictures_are_refused(image: tuple[int, int]) -> None:
    """A picture more than four times as long as wide is refused with its size and the remedy."""
    with pytest.raises(PermanentError, match=rf"{image[0]} x {image[1]} pixels.*crop the picture"):
        plan_size(*image, "480*832")


def test_cropped_share() -> None:
    """Covering a square with a 2:1 picture crops half of it; the same shape is not cropped, at any scale."""
    assert cropped_share(200, 100, 640, 640) == pytest.approx(0.5)
    assert cropped_share(300, 150, 640, 320) == pytest.approx(0.0)


@pytest.mark.parametrize(
    ("height", "width", "expected"), [(100, 400, (64, 384)), (400, 100, (384, 64)), (4000, 3000, (704, 512))]
)
def test_the_size_behind_all_scales_is_that_of_the_reference(
    height: int, width: int, expected: tuple[int, int]
) -> None:
    """If no scale fits, the sides are those of the area, or of the picture if it is smaller."""
    assert _floored_size(height, width, 480 * 832) == expected
