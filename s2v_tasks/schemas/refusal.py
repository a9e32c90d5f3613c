"""What is wrong with a field of a request, in words for the person who wrote it."""

from collections.abc import Iterable
from typing import Any

from pydantic import ValidationError

from s2v_tasks.schemas.size import MAX_SIDE, MIN_SIDE, SIDE_STEP


def sentences(error: ValidationError, known_fields: Iterable[str]) -> list[str]:
    """Return what is wrong, one text for each problem: the field, a short form of its value and what was expected."""
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
