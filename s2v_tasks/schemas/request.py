"""A request: everything that a person or a system says about one talking video.

The fields are the reference's own names. The UI form, the CLI options and `request.json` all come from this model.
"""

import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from s2v_tasks.errors import PermanentError

JOB_ID_PATTERN = r"^[a-z0-9][a-z0-9-]{2,62}$"
S3_URI_PATTERN = r"^s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]/[^\s?#]+$"
SIZE_PATTERN = r"^\d{3,4}\*\d{3,4}$"
MAX_PROMPT_CHARACTERS = 2000

SIDE_STEP, MIN_SIDE, MAX_SIDE, MAX_AREA = 32, 128, 1280, 1280 * 720

Solver = Literal["unipc", "dpm++"]


class Request(BaseModel):
    """What to make. Fields left out (None) take the value of the preset."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    image_uri: str = Field(
        pattern=S3_URI_PATTERN,
        title="Reference image",
        description="S3 URI of a PNG, JPEG or WebP picture of the speaker, 32 px to 64 megapixels.",
    )
    audio_uri: str = Field(
        pattern=S3_URI_PATTERN,
        title="Speech",
        description="S3 URI of the speech (WAV, MP3, FLAC, OGG, M4A ...). Its length decides the length of the video.",
    )
    pose_video_uri: str | None = Field(
        None,
        pattern=S3_URI_PATTERN,
        title="Pose video",
        description="Optional S3 URI of a pose video that guides the body; it is resampled to 16 fps by time.",
    )
    prompt: str = Field(
        min_length=1,
        max_length=MAX_PROMPT_CHARACTERS,
        title="Prompt",
        description="What the picture shows and how the person speaks and moves, in words.",
    )
    preset: str = Field(
        "balanced",
        pattern=r"^[a-z][a-z0-9_-]{0,31}$",
        title="Preset",
        description="Named set of defaults for the fields below (config/presets.yaml).",
    )
    num_clip: int | None = Field(
        None,
        ge=1,
        le=1000,
        title="Number of clips",
        description="Empty: as many clips as the speech needs. Fewer make a preview of the beginning.",
    )
    infer_frames: int | None = Field(
        None,
        ge=16,
        le=120,
        multiple_of=4,
        title="Frames per clip",
        description="Frames that one clip renders at 16 fps: a multiple of 4 from 16 (1 s) to 120 (7.5 s).",
    )
    sample_steps: int | None = Field(
        None,
        ge=2,
        le=100,
        title="Solver steps",
        description="Denoising steps of each clip; cost grows with it.",
    )
    sample_guide_scale: float | None = Field(
        None,
        ge=1.0,
        le=20.0,
        title="Guidance scale",
        description="Strength of prompt and speech. 1 turns guidance off and halves the cost.",
    )
    sample_shift: float | None = Field(
        None,
        ge=1.0,
        le=20.0,
        title="Schedule shift",
        description="Shift of the noise schedule. Empty: 3 up to 480*832 pixels, 5 from 1024*704 on.",
    )
    sample_solver: Solver | None = Field(None, title="Solver", description="unipc (default) or dpm++.")
    size: str | None = Field(
        None,
        pattern=SIZE_PATTERN,
        title="Size W*H",
        description="Bounds the area of the picture; the aspect ratio follows the image. Sides: multiples of 32 from "
        "128 to 1280, at most 1280*720 pixels in all. The 14B model was trained for 480*832 up to 1024*704 and 720p.",
    )
    base_seed: int = Field(
        -1,
        ge=-1,
        le=2**63 - 1001,
        title="Seed",
        description="Seed of the first clip (clip k uses seed + k). -1: derived from the job id; a retry repeats it.",
    )
    start_from_ref: bool = Field(
        False,
        title="Start from the reference picture",
        description="Begin the first clip with the reference picture itself.",
    )

    @field_validator("prompt")
    @classmethod
    def _prompt_has_words(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("is blank: describe the picture and how the person speaks")
        if "\0" in value:
            raise ValueError("has a NUL character: expected plain text")
        return value

    @field_validator("size")
    @classmethod
    def _size_is_legal(cls, value: str | None) -> str | None:
        if value is not None:
            parse_size(value)
        return value


def parse_size(size: str) -> tuple[int, int]:
    """Width and height in pixels of `W*H`; ValueError when a side or the area is out of bounds."""
    if not re.match(SIZE_PATTERN, size):
        raise ValueError(f"expected W*H such as 480*832, each side a multiple of {SIDE_STEP}")
    width, height = (int(side) for side in size.split("*"))
    for side in (width, height):
        if side % SIDE_STEP or not MIN_SIDE <= side <= MAX_SIDE:
            raise ValueError(
                f"expected sides that are multiples of {SIDE_STEP} from {MIN_SIDE} to {MAX_SIDE}, such as 480*832"
            )
    if width * height > MAX_AREA:
        raise ValueError(f"has {width * height} pixels: expected at most 1280*720 = {MAX_AREA}")
    return width, height


def parse_request(data: dict[str, Any]) -> Request:
    """Validate `data`; PermanentError in one sentence that names each bad field, its value and what was expected."""
    try:
        return Request.model_validate(data)
    except ValidationError as error:
        raise PermanentError("Bad request: " + "; ".join(_sentence(e) for e in error.errors()) + ".") from None


def _sentence(error: Any) -> str:
    field = ".".join(str(part) for part in error["loc"]) or "request"
    value = repr(error.get("input"))
    if len(value) > 60:
        value = f"{value[:57]}... ({len(str(error.get('input')))} characters)"
    match error["type"]:
        case "missing":
            return f"{field} is missing"
        case "extra_forbidden":
            return f"{field} is not a field of a request (known: {', '.join(Request.model_fields)})"
        case "value_error":
            return f"{field} {value}: {error['ctx']['error']}"
        case _:
            return f"{field} {value}: {_expected(field, error['msg'])}"


def _expected(field: str, message: str) -> str:
    if field == "infer_frames":
        return "expected a multiple of 4 from 16 to 120, for example 80"
    if field == "size":
        return f"expected W*H such as 480*832, each side a multiple of {SIDE_STEP} from {MIN_SIDE} to {MAX_SIDE}"
    if field.endswith("_uri"):
        return "expected an S3 URI such as s3://bucket/folder/file"
    return message[0].lower() + message[1:]
