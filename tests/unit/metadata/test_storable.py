"""Check values that PostgreSQL refuses, and their replacements."""

import math
from typing import Any

import pytest

from s2v_tasks.metadata.sql import request_columns, storable


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        ("no\0 luck \ud800", "no\ufffd luck \ufffd"),
        ({"a\0": ["b\0", {"c": "\udfff"}]}, {"a\ufffd": ["b\ufffd", {"c": "\ufffd"}]}),
        (("x", 1), ["x", 1]),
        (math.nan, "NaN"),
        (math.inf, "Infinity"),
        (-math.inf, "-Infinity"),
        ({"loss": math.nan}, {"loss": "NaN"}),
        (1.5, 1.5),
        (7, 7),
        (True, True),
        (None, None),
        ("Grüße 🎬", "Grüße 🎬"),
    ],
)
def test_values_that_cannot_be_stored_are_replaced(value: Any, stored: Any) -> None:
    """Texts, keys and numbers are replaced at any depth, and other values do not change."""
    assert storable(value) == stored
    assert type(storable(value)) is type(stored)


def test_an_invalid_request_leaves_the_columns_empty() -> None:
    """Fields of a wrong type do not reach the columns of a job."""
    empty = {"labels": {}, "priority": "normal", "from_clip": None, "preset": None, "parent_job_id": None}
    wrong = {"labels": ["a"], "priority": "soon", "from_clip": -1, "preset": 5, "parent_job_id": ["j"]}
    assert request_columns({}) == request_columns(wrong) == empty
    valid = {"labels": {"a": "b"}, "priority": "low", "from_clip": 0, "preset": "quick", "parent_job_id": "j"}
    assert request_columns(valid) == valid
