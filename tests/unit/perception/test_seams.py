"""Check jumps between two frames."""

import numpy as np
import pytest

from s2v_tasks.perception import seams
from s2v_tasks.schemas.quality import SeamQuality
from s2v_tasks.validation.quality import judge_clip
from tests.unit.perception.drawn import Person, Picture, brightened, moved
from tests.unit.perception.test_faults import LIMITS
from tests.unit.rendering.test_takes import MEASURED

BOTH = {"seam_colour", "seam_colour_jump"}


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


@pytest.mark.parametrize(("colour_jump", "expected"), [(1.5, set()), (1.6, {"seam_colour"}), (3.1, BOTH)])
def test_a_colour_step_that_is_usual_inside_the_clips_is_not_a_seam(colour_jump: float, expected: set[str]) -> None:
    """Glasses or hair that cover a patch of skin now and then change its colour at any frame."""
    seam = SeamQuality(start_frame=16, jump=0.5, colour_jump=colour_jump, skin_step=5.5, background_step=0.0)
    clip = MEASURED.model_copy(update={"seam": seam})
    assert {finding.measure for finding in judge_clip(clip, None, LIMITS)} == expected
