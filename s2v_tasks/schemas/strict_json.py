"""JSON that strangers wrote: what Python's reader lets pass, but the standard does not or leaves open, is refused."""

import json
from typing import Any


def parse_json(text: str) -> Any:
    """The value of a JSON text; ValueError for anything else, for NaN, for deep nesting, and for a key given twice."""
    try:
        return json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_object)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number of JSON")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members: dict[str, Any] = {}
    for name, value in pairs:
        if name in members:
            raise ValueError(f"the key {name[:200]!r} is given more than once")
        members[name] = value
    return members
