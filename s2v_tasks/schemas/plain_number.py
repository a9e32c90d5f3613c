"""Numbers of requests and presets: decimal, in ASCII digits, never true or false."""

import re
from typing import Any, get_args

from pydantic.fields import FieldInfo

# Python would also take 1_000, nan and the digits of other scripts.
_NUMBER = r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?"


def plain_number(value: Any, field: FieldInfo) -> Any:
    """Return `value` unless the field takes numbers and it is true, false or a text that is no plain number."""
    if {int, float} & {field.annotation, *get_args(field.annotation)}:
        if isinstance(value, bool):
            raise ValueError("expected a number, not true or false")
        if isinstance(value, str) and not re.fullmatch(_NUMBER, value.strip(" ")):
            raise ValueError("expected a number in the digits 0 to 9, such as 80 or 4.5")
    return value
