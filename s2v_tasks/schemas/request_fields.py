"""Types of the fields of a request: choices, patterns, bounds, sections of the UI form, and rules for single values."""

import re
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema
from pydantic.fields import FieldInfo

# Any object name that S3 accepts, without control characters and line ends; storage.locations decides which may be
# read.
S3_URI_PATTERN = r"^s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]/[^\x00-\x1f\x7f-\x9f\u2028\u2029]+$"
WEBHOOK_URL_PATTERN = r"^https?://[A-Za-z0-9.:\[\]-]+([/?]\S*)?$"
# The syntax of Kubernetes labels without a key prefix, because labels are copied to pods.
LABEL_PATTERN = r"^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$"
SIZE_PATTERN = r"^[0-9]{3,4}\*[0-9]{3,4}$"  # not \d, which matches the digits of all scripts
SIDE_STEP, MIN_SIDE, MAX_SIDE, MAX_AREA = 32, 128, 1280, 1280 * 720
# A decimal number in ASCII digits: Python also accepts 1_000, nan and the digits of other scripts.
_NUMBER = r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?"
ADAPTER_NAME_PATTERN = r"^[a-z][a-z0-9_-]{0,63}$"
MAX_LABELS = 16
MAX_PROMPT_CHARACTERS = 2000
MAX_CLIPS = 1000
MAX_ADAPTERS = 8
DEFAULT_MAX_RETAKES = 2
MAX_SEED = 2**63 - 1001
DEFAULT_MIN_CHAIN_SECONDS, DEFAULT_MAX_CHAIN_SECONDS = 10.0, 60.0

Solver = Literal["unipc", "dpm++", "euler"]
StepCache = Literal["off", "quality", "fast"]
Continuity = Literal["chained", "cut"]
Transition = Literal["cut", "crossfade"]
Quality = Literal["off", "report", "gate"]
AfterRetakes = Literal["keep_best", "stop"]
Approval = Literal["none", "result", "each_clip"]
StepIndex = Annotated[int, Field(ge=0, le=100)]


def _section(title: str) -> Any:
    return Field(json_schema_extra={"section": title})


# Sections of the UI form.
INPUTS, WHAT_TO_MAKE, LONG_VIDEOS = _section("Inputs"), _section("What to make"), _section("Long videos")
QUALITY = _section("Quality")
BOOKKEEPING, RERUN, SAMPLING = _section("Budget and bookkeeping"), _section("Rerun"), _section("Sampling")


URI_FIELDS = ("image_uri", "audio_uri", "pose_video_uri")
# Fields that do not change the plan, and therefore not the cost.
NOT_PLANNING = frozenset({
    *URI_FIELDS, "prompt", "priority", "labels", "webhook_url", "parent_job_id", "from_clip", "approval",
})  # fmt: skip


class AdapterChoice(BaseModel):
    """An adapter of config/adapters.yaml and its strength."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: str = Field(pattern=ADAPTER_NAME_PATTERN)
    strength: float = Field(1.0, ge=-4.0, le=4.0)


# Written out, because the form takes no references to other schemas.
_ADAPTER_SCHEMA = {
    "type": "object",
    "required": ["name"],
    "additionalProperties": False,
    "properties": {
        "name": {"type": "string", "pattern": ADAPTER_NAME_PATTERN},
        "strength": {"type": "number", "minimum": -4, "maximum": 4},
    },
}
Adapter = Annotated[AdapterChoice, WithJsonSchema(_ADAPTER_SCHEMA)]


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
    """Return `value`; ValueError if the field takes numbers and `value` is true, false or no plain number."""
    if {int, float} & {field.annotation, *get_args(field.annotation)}:
        if isinstance(value, bool):
            raise ValueError("expected a number, not true or false")
        if isinstance(value, str) and not is_plain_number(value):
            raise ValueError("expected a number in the digits 0 to 9, such as 80 or 4.5")
    return value


def is_plain_number(text: str) -> bool:
    """Return True for a decimal number in the digits 0 to 9; spaces around it are ignored."""
    return re.fullmatch(_NUMBER, text.strip(" ")) is not None


def is_none(value: object) -> bool:
    """Return True for None."""
    return value is None


def names_a_file(uri: str | None) -> str | None:
    """Return the URI; ValueError if it names a folder."""
    if uri is not None and uri.endswith("/"):
        raise ValueError("is a folder, not a file: add the name of the file to it")
    return uri


def has_words(prompt: str) -> str:
    """Return the prompt; ValueError if it is blank or no plain text."""
    if not prompt.strip():
        raise ValueError("is blank: describe the picture and how the person speaks")
    if "\0" in prompt:
        raise ValueError("has a NUL character: expected plain text")
    return prompt


def is_legal_size(size: str | None) -> str | None:
    """Return the size `W*H`; ValueError for a side or an area out of bounds."""
    if size is not None:
        parse_size(size)
    return size


def is_range(steps: list[int] | None) -> list[int] | None:
    """Return [from, to]; ValueError if the range is empty."""
    if steps is not None and steps[0] >= steps[1]:
        raise ValueError("expected [from, to], two step numbers of which the second is larger, such as [0, 10]")
    return steps


def are_different(adapters: list[AdapterChoice] | None) -> list[AdapterChoice] | None:
    """Return the adapters; ValueError if one is named twice."""
    names = [adapter.name for adapter in adapters or ()]
    if len(names) != len(set(names)):
        raise ValueError("names an adapter twice: give each adapter once, with its strength")
    return adapters


def are_plain(labels: dict[str, str]) -> dict[str, str]:
    """Return the labels; ValueError for names and values that are not valid Kubernetes labels."""
    parts = [*labels, *labels.values()]
    if wrong := [part[:80] for part in parts if not re.fullmatch(LABEL_PATTERN, part)]:
        raise ValueError(
            f"{' and '.join(map(repr, wrong))} cannot be a label: expected 1 to 63 letters, digits, dots, dashes and "
            "underscores, with a letter or digit at both ends"
        )
    return labels
