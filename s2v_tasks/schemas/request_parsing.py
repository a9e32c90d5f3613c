"""Parse requests from untrusted text.

Text and JSON are parsed strictly: extensions of Python to the standard are refused. All problems of a request are
reported at once.
"""

import json
import math
from collections.abc import Iterable
from typing import Any

from pydantic import ValidationError

from s2v_tasks.errors import PermanentError
from s2v_tasks.schemas.job import JOB_ID_RULE
from s2v_tasks.schemas.request import Request
from s2v_tasks.schemas.request_fields import MAX_SIDE, MIN_SIDE, SIDE_STEP

# Fields that `Request._problems_between_fields` compares, and placeholders for required fields.
_JUDGED_TOGETHER = (
    {"continuity", "min_chain_seconds", "max_chain_seconds", "transition", "approval", "clips_per_pod"},
    {"parent_job_id", "from_clip"},
)
_PLACEHOLDERS = {"image_uri": "s3://bucket/image", "audio_uri": "s3://bucket/audio", "prompt": "placeholder"}
_MOST_DIGITS = 308  # of a whole number: what a double can hold
_MOST_ERRORS = 100  # listed one by one: more than a request has fields and labels
_DEEPEST = 32  # a request needs two levels


def parse_request(data: dict[str, Any]) -> Request:
    """Return `data` as a request; PermanentError lists each bad field with its value and the expectation."""
    try:
        return Request.model_validate(data)
    except ValidationError as error:
        if error.error_count() > _MOST_ERRORS:
            problems = [
                f"it has {error.error_count()} errors; expected only the fields {', '.join(Request.model_fields)}"
            ]
        else:
            problems = [*_sentences(error), *_problems_of_the_rest(data, error)]
    raise PermanentError("Bad request: " + "; ".join(problems) + ".")


def _problems_of_the_rest(data: dict[str, Any], error: ValidationError) -> list[str]:
    """Return the conflicts between valid fields, which pydantic does not check while other fields are invalid."""
    bad = {problem["loc"][0] for problem in error.errors() if problem["loc"]}
    if not bad:
        return []
    bad |= {name for group in _JUDGED_TOGETHER if bad & group for name in group}
    try:
        Request.model_validate(_PLACEHOLDERS | {name: value for name, value in data.items() if name not in bad})
    except ValidationError as second:
        return _sentences(second)
    return []


def _sentences(error: ValidationError) -> list[str]:
    """Return one sentence for each problem: the field, a short form of its value and the expectation.

    Unknown fields have one sentence together, because it lists all known fields.
    """
    problems = error.errors()
    unknown = [_place(problem) for problem in problems if problem["type"] == "extra_forbidden"]
    sentences = [_sentence(problem) for problem in problems if problem["type"] != "extra_forbidden"]
    if unknown:
        what = "is not a field" if len(unknown) == 1 else "are not fields"
        sentences.append(f"{', '.join(unknown)} {what} of a request (known: {', '.join(Request.model_fields)})")
    return sentences


def _place(error: Any) -> str:
    return ".".join(str(part) if str(part).isprintable() else ascii(part) for part in error["loc"])


def _sentence(error: Any) -> str:
    if not error["loc"]:
        return str(error.get("ctx", {}).get("error", error["msg"]))
    field = _place(error)
    value = repr(error.get("input"))
    if len(value) > 60:
        value = f"{value[:57]}... ({len(str(error.get('input')))} characters)"
    if field == "webhook_url":
        value = "(not shown: it may hold a secret)"
    match error["type"]:
        case "missing":
            return f"{field} is missing"
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
    if field == "preset":
        return "expected the name of a preset in lower-case letters, such as balanced"
    if field.endswith(".name"):
        return "expected the name of an adapter of adapters.yaml in lower-case letters"
    if field == "parent_job_id":
        return f"expected a job id of {JOB_ID_RULE}"
    return message[0].lower() + message[1:]


def decode_text(data: bytes) -> str:
    """Return the text of a file in UTF-8, UTF-16 or UTF-32, without its byte order mark; ValueError for others."""
    encoding = json.detect_encoding(data)
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 text: {error}") from error


def parse_json(text: str | bytes) -> Any:
    """Return the value of a JSON text; ValueError for anything else.

    NaN, numbers beyond the range of a double, deep nesting and repeated keys are refused too.
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
