"""Check values that PostgreSQL refuses, and their replacements."""

import math
from typing import Any

import pytest

from s2v_tasks.metadata.sql import storable


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
