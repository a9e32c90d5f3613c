"""Values of request fields: sizes and numbers, and sentences about values that are refused."""

import re
from collections.abc import Iterable
from typing import Any, get_args

from pydantic import ValidationError
from pydantic.fields import FieldInfo

SIZE_PATTERN = r"^[0-9]{3,4}\*[0-9]{3,4}$"  # not \d, which takes the digits of all scripts
SIDE_STEP, MIN_SIDE, MAX_SIDE, MAX_AREA = 32, 128, 1280, 1280 * 720
# A decimal number in ASCII digits: Python also accepts 1_000, nan and the digits of other scripts.
_NUMBER = r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?"


def parse_size(size: str) -> tuple[int, int]:
    """Return width and height in pixels of `W*H`; ValueError for a side or an area out of bounds."""
    if not re.fullmatch(SIZE_PATTERN, size):
        raise ValueError(f"expected W*H such as 480*832, each side a multiple of {SIDE_STEP} in the digits 0 to 9")
    width, height = (int(side) for side in size.split("*"))
    for side in (width, height):
        if side % SIDE_STEP or not MIN_SIDE <= side <= MAX_SIDE:
            raise ValueError(
                f"expected sides that are multiples of {SIDE_STEP} from {MIN_SIDE} to {MAX_SIDE}, such as 480*832"
            )
    if width * height > MAX_AREA:
        raise ValueError(f"has {width * height} pixels: expected at most 1280*720 = {MAX_AREA}")
    return width, height


def plain_number(value: Any, field: FieldInfo) -> Any:
    """Return `value`; ValueError if the field takes numbers and it is true, false or a text that is no plain number."""
    if {int, float} & {field.annotation, *get_args(field.annotation)}:
        if isinstance(value, bool):
            raise ValueError("expected a number, not true or false")
        if isinstance(value, str) and not re.fullmatch(_NUMBER, value.strip(" ")):
            raise ValueError("expected a number in the digits 0 to 9, such as 80 or 4.5")
    return value


def sentences(error: ValidationError, known_fields: Iterable[str]) -> list[str]:
    """Return one sentence for each problem: the field, a short form of its value and the expectation."""
    return [_sentence(problem, known_fields) for problem in error.errors()]


def _sentence(error: Any, known_fields: Iterable[str]) -> str:
    if not error["loc"]:
        return str(error.get("ctx", {}).get("error", error["msg"]))
    field = ".".join(str(part) if str(part).isprintable() else ascii(part) for part in error["loc"])
    value = repr(error.get("input"))
    if len(value) > 60:
        value = f"{value[:57]}... ({len(str(error.get('input')))} characters)"
    if field == "webhook_url":
        value = "(not shown: it may hold a secret)"
    match error["type"]:
        case "missing":
            return f"{field} is missing"
        case "extra_forbidden":
            return f"{field} is not a field of a request (known: {', '.join(known_fields)})"
        case "value_error":
            return f"{field} {value}: {error['ctx']['error']}"
        case _:
            return f"{field} {value}: {_expected(field, error['msg'])}"


def _expected(field: str, message: str) -> str:
    if field == "infer_frames":
        return "expected a multiple of 4 from 16 to 120, for example 80"
    if field == "size":
        return (
            f"expected W*H such as 480*832, each side a multiple of {SIDE_STEP} from {MIN_SIDE} to {MAX_SIDE}, in the "
            "digits 0 to 9"
        )
    if field == "webhook_url":
        return "expected an http or https URL without user and password, of at most 1000 characters"
    if field.endswith("_uri"):
        return "expected an S3 URI such as s3://bucket/folder/file, without control characters"
    return message[0].lower() + message[1:]
