"""Check the ranges of objects that a player requests."""

import pytest

from s2v_tasks.storage.locations import Location
from s2v_tasks.storage.objects import MAX_RANGE_BYTES, _bounded, deleted_at_once

MOST = MAX_RANGE_BYTES


@pytest.mark.parametrize(
    ("asked", "read"),
    [
        ("bytes=0-99", "bytes=0-99"),
        ("bytes=100-100", "bytes=100-100"),
        ("bytes = 5 - 9", "bytes=5-9"),
        ("bytes=0-", f"bytes=0-{MOST - 1}"),
        ("bytes=7-", f"bytes=7-{MOST + 6}"),
        (f"bytes=0-{MOST - 1}", f"bytes=0-{MOST - 1}"),
        (f"bytes=0-{MOST}", f"bytes=0-{MOST - 1}"),
        (f"bytes=5-{10 * MOST}", f"bytes=5-{MOST + 4}"),
        ("bytes=-500", "bytes=-500"),
        (f"bytes=-{MOST + 1}", f"bytes=-{MOST}"),
        ("bytes=0-1,5-6", None),
        ("lines=0-1", None),
        ("", None),
        (None, None),
    ],
)
def test_a_part_is_at_most_as_long_as_one_answer(asked: str | None, read: str | None) -> None:
    """A longer range is cut to the length of one answer, and several ranges at once are not served."""
    assert _bounded(asked) == read


def test_objects_are_deleted_a_thousand_at_a_time() -> None:
    """A request deletes at most a thousand objects, all of one bucket, or one whose name XML cannot hold."""
    many = [Location("one", str(number)) for number in range(2001)]
    odd = [Location("one", f"a{character}b") for character in "\x01\x1b\uffff"]
    groups = list(deleted_at_once([[*many[:7], *odd, *many[7:]], [Location("two", "a\t\r\n\x7fb")]]))
    assert [len(group) for group in groups] == [1, 1, 1, 1000, 1000, 1, 1]
    assert [place for group in groups[:3] for place in group] == odd
    assert [place for group in groups[3:6] for place in group] == many
