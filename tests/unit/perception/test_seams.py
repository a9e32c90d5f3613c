"""Check jumps between two frames."""

import numpy as np
import pytest

from s2v_tasks.perception import seams
from tests.unit.perception.drawn import Person, Picture, brightened, moved


def shift(one: Picture, other: Picture) -> float:
    return seams.shift(seams.spectrum(one), seams.spectrum(other))


@pytest.mark.parametrize("pixels", [1, 3, 12])
def test_a_planted_shift_is_measured(pixels: int) -> None:
    """The shift is a share of the width, exact to a third of a pixel."""
    picture = Person(0, width=384, height=480).draw(0.2, 0)
    assert shift(picture, moved(picture, pixels)) * 384 == pytest.approx(pixels, abs=0.35)


def test_a_change_of_brightness_or_of_the_mouth_is_no_shift() -> None:
    """Only motion of the whole picture counts as a shift."""
    person = Person(0, width=384, height=480)
    picture = person.draw(0, 0)
    assert shift(picture, picture) * 384 < 0.05
    assert shift(picture, brightened(picture, 12)) * 384 < 0.1
    assert shift(picture, person.draw(1, 0)) * 384 < 0.3


def test_a_jump_is_relative_to_the_motion_inside_the_clips() -> None:
    """Three pixels are a jump in a still video and none in a shaking one."""
    still, shaking = np.full(40, 0.0004), np.full(40, 0.02)
    assert seams.jump(3 / 384, still) > 5
    assert seams.jump(3 / 384, shaking) < 1
    assert seams.jump(0.0, np.array([])) == 0
