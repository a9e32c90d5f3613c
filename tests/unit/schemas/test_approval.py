"""Check rejections: the clips that are rendered again, and the changed fields."""

import re
from typing import Any

import pytest

from s2v_tasks.errors import PermanentError
from s2v_tasks.schemas.approval import Rejection, parse_rejection


@pytest.mark.parametrize(
    ("from_clip", "rejected", "first"), [(None, None, 0), (2, None, 2), (None, 3, 3), (0, 3, 0), (3, 3, 3)]
)
def test_a_rejection_begins_at_the_rejected_clip_by_default(
    from_clip: int | None, rejected: int | None, first: int
) -> None:
    """The rejection of a video begins at its first clip."""
    assert Rejection(from_clip=from_clip).first_clip(rejected, 4) == first


def test_clips_behind_the_rejected_one_are_not_there_yet() -> None:
    """A clip after the rejected one, or beyond the plan, is refused with the bounds."""
    for rejected in (3, None):
        with pytest.raises(PermanentError, match="from_clip 4: expected 0 to 3"):
            Rejection(from_clip=4).first_clip(rejected, 9 if rejected else 4)


@pytest.mark.parametrize(
    ("given", "changes"),
    [
        ({"note": "No.", "from_clip": 1}, {}),
        ({"prompt": "", "base_seed": None}, {}),
        ({"prompt": "", "base_seed": 0}, {"base_seed": 0}),
        ({"prompt": "She smiles.", "sample_steps": 9}, {"prompt": "She smiles.", "sample_steps": 9}),
    ],
)
def test_an_empty_field_of_a_rejection_changes_nothing(given: dict[str, Any], changes: dict[str, Any]) -> None:
    """An empty prompt, as the form sends it, changes nothing; the seed 0 is a change."""
    assert Rejection(**given).changes == changes


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nope", "The rejection is not JSON (Expecting value"),
        ('{"note": NaN}', "The rejection is not JSON (NaN is not a number of JSON)"),
        ("[]", "The rejection is a JSON list: expected an object"),
        ('{"sample_steps": 0}', "Bad rejection: sample_steps 0: Input should be greater than or equal to 1."),
        ('{"size": "9*9"}', "Bad rejection: size '9*9': Extra inputs are not permitted."),
    ],
)
def test_a_rejection_that_is_none_is_refused(text: str, said: str) -> None:
    """The message has the value and the expectation."""
    with pytest.raises(PermanentError, match=f"^{re.escape(said)}"):
        parse_rejection(text)
