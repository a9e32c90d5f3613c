"""Strict parsing of text and JSON from untrusted sources: refuse what Python accepts beyond the standard."""

import json
import math
from collections.abc import Iterable
from typing import Any

_MOST_DIGITS = 308  # of a whole number: what a double can hold
_DEEPEST = 32  # a request needs two levels


def decode_text(data: bytes) -> str:
    """Return the text of a file in UTF-8, UTF-16 or UTF-32, without its byte order mark; ValueError for others."""
    encoding = json.detect_encoding(data)
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 text: {error}") from error


def parse_json(text: str | bytes) -> Any:
    """Return the value of a JSON text; ValueError for anything else.

    Also refused: NaN, a number that no double can hold, deep nesting, and a key that is given more than once.
    """
    if isinstance(text, bytes):
        text = decode_text(text)
    try:
        value = json.loads(
            text.removeprefix("\ufeff"),
            parse_constant=_refuse_constant,
            parse_float=_fraction,
            parse_int=_whole_number,
            object_pairs_hook=_object,
        )
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    _check_depth(value)
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number of JSON")


def _fraction(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:40]} is too large for a number")
    return number


def _whole_number(text: str) -> int:
    if len(text) > _MOST_DIGITS:
        raise ValueError(f"a number of {len(text)} digits is too large: expected at most {_MOST_DIGITS}")
    return int(text)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members: dict[str, Any] = {}
    for name, value in pairs:
        if name in members:
            raise ValueError(f"the key {name[:200]!r} is given more than once")
        members[name] = value
    return members


def _check_depth(value: Any) -> None:
    """Raise ValueError for deep nesting: later code may process the value recursively."""
    level = [value]
    for _ in range(_DEEPEST):
        level = [member for members in map(_members, level) for member in members]
        if not level:
            return
    raise ValueError(f"nested too deeply: expected at most {_DEEPEST} levels")


def _members(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
