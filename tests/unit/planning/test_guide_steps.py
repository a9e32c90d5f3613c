"""Check the bounds of the steps with guidance."""

import pytest

from s2v_tasks.errors import PermanentError
from s2v_tasks.planning.sampling import check_guide_steps
from s2v_tasks.schemas.plan import Sampling


def sampling(first: int, end: int, scale: float = 4.5) -> Sampling:
    return Sampling(
        sample_steps=10, sample_guide_scale=scale, sample_shift=3.0, sample_solver="unipc", start_from_ref=False,
        guide_steps=(first, end),
    )  # fmt: skip


@pytest.mark.parametrize(("first", "end"), [(0, 10), (9, 10), (0, 1)])
def test_a_range_within_the_steps_is_accepted(first: int, end: int) -> None:
    """A range may end with the last step."""
    assert check_guide_steps(sampling(first, end)) == sampling(first, end)


@pytest.mark.parametrize(("first", "end", "scale"), [(0, 11, 4.5), (5, 5, 4.5), (0, 10, 1.0)])
def test_other_ranges_are_refused(first: int, end: int, scale: float) -> None:
    """An empty range, one beyond the steps, and any range without guidance are refused."""
    with pytest.raises(PermanentError, match=rf"guide_steps \[{first}, {end}\]"):
        check_guide_steps(sampling(first, end, scale))
