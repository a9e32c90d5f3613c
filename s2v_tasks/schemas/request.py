"""A request: everything that a person or a system says about one talking video.

The fields are the reference's own names. The UI form, the CLI options and `request.json` all come from this model.
"""

import re
from collections.abc import Iterable
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from s2v_tasks.errors import PermanentError
from s2v_tasks.schemas.job import DEFAULT_PRIORITY, JOB_ID_PATTERN, Priority
from s2v_tasks.schemas.plain_number import plain_number
from s2v_tasks.schemas.refusal import sentences
from s2v_tasks.schemas.size import SIZE_PATTERN, parse_size

# Any name that S3 takes but control characters and ends of lines; storage.access says which places may be named.
S3_URI_PATTERN = r"^s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]/[^\x00-\x1f\x7f-\x9f\u2028\u2029]+$"
WEBHOOK_URL_PATTERN = r"^https?://[A-Za-z0-9.:\[\]-]+([/?]\S*)?$"
# Those of Kubernetes, without a prefix in the key: labels reach pods as they are.
LABEL_PATTERN = r"^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$"
MAX_LABELS = 16
MAX_PROMPT_CHARACTERS = 2000
MAX_CLIPS = 1000

DEFAULT_MIN_CHAIN_SECONDS, DEFAULT_MAX_CHAIN_SECONDS = 10.0, 60.0

Solver = Literal["unipc", "dpm++"]
Continuity = Literal["chained", "cut"]
Transition = Literal["cut", "crossfade"]


class Request(BaseModel):
    """What to make. Fields left out (None) take the value of the preset."""

    # JSON has no infinity: what a run gets must be what was asked for.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    image_uri: str = Field(
        pattern=S3_URI_PATTERN,
        title="Reference image",
        description="S3 URI of a PNG, JPEG or WebP picture of the speaker, 32 px to 40 megapixels (WebP: 20).",
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
        le=MAX_CLIPS,
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
        description="Begin the first clip of each chain with the reference picture itself.",
    )
    continuity: Continuity = Field(
        "chained",
        title="Continuity",
        description="chained: each clip continues the one before it, one after the other. cut: start again from the "
        "reference picture at pauses of the speech, so that a long video renders on many GPUs at once.",
    )
    min_chain_seconds: float | None = Field(
        None,
        ge=2,
        le=600,
        title="Shortest chain (s)",
        description=f"Only with continuity cut: no cut sooner after the last one. "
        f"Empty: {DEFAULT_MIN_CHAIN_SECONDS:g} s.",
    )
    max_chain_seconds: float | None = Field(
        None,
        ge=4,
        le=1200,
        title="Longest chain (s)",
        description="Only with continuity cut: no cut later after the last one, even where nobody pauses. At least "
        f"twice the shortest. Empty: {DEFAULT_MAX_CHAIN_SECONDS:g} s.",
    )
    transition: Transition = Field(
        "cut",
        title="Transition",
        description="Only with continuity cut: how the picture goes on there. cut: at once; crossfade: over 250 ms.",
    )
    clips_per_pod: int = Field(
        1,
        ge=1,
        le=16,
        title="Clips per pod",
        description="Consecutive clips that one process renders with the model loaded once.",
    )
    priority: Priority = Field(DEFAULT_PRIORITY, title="Priority", description="Which jobs get a free GPU first.")
    labels: dict[str, str] = Field(
        {},
        max_length=MAX_LABELS,
        title="Labels",
        description=f"At most {MAX_LABELS} names with values to find and to bill jobs by, each of up to 63 letters, "
        'digits, dots, dashes and underscores, for example {"team": "news"}.',
    )
    max_gpu_seconds: float | None = Field(
        None,
        gt=0,
        title="Most GPU-seconds",
        description="A plan that is expected to need more is refused before anything is spent.",
    )
    max_cost: float | None = Field(
        None,
        gt=0,
        title="Highest cost",
        description="In the currency of the configured GPU. A plan that is expected to cost more is refused before "
        "anything is spent.",
    )
    webhook_url: str | None = Field(
        None,
        pattern=WEBHOOK_URL_PATTERN,
        max_length=1000,
        title="Webhook",
        description="Optional http(s) URL that is told when the job starts, a clip is done, and the job ends.",
    )
    parent_job_id: str | None = Field(
        None,
        pattern=JOB_ID_PATTERN,
        title="Earlier job",
        description="Rerun: the job whose clips before `from_clip` are reused, with its frames, size and seeds.",
    )
    from_clip: int | None = Field(
        None,
        ge=0,
        lt=MAX_CLIPS,
        title="Rerun from clip",
        description="Rerun: index of the first clip, from 0, that is rendered anew.",
    )

    @field_validator("*", mode="before")
    @classmethod
    def _numbers_are_plain(cls, value: Any, info: ValidationInfo) -> Any:
        return plain_number(value, cls.model_fields[str(info.field_name)])

    @field_validator("image_uri", "audio_uri", "pose_video_uri")
    @classmethod
    def _uri_names_a_file(cls, value: str | None) -> str | None:
        if value is not None and value.endswith("/"):
            raise ValueError("is a folder, not a file: add the name of the file to it")
        return value

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

    @field_validator("labels")
    @classmethod
    def _labels_are_plain(cls, value: dict[str, str]) -> dict[str, str]:
        parts = [*value, *value.values()]
        if wrong := [part[:80] for part in parts if not re.fullmatch(LABEL_PATTERN, part)]:
            raise ValueError(
                f"{' and '.join(map(repr, wrong))} is not a label: expected 1 to 63 letters, digits, dots, dashes and "
                "underscores, a letter or digit first and last"
            )
        return value

    @model_validator(mode="after")
    def _fields_fit_each_other(self) -> Self:
        if problems := [*self._problems_between_fields()]:
            raise ValueError("; ".join(problems))
        return self

    def _problems_between_fields(self) -> Iterable[str]:
        if self.continuity == "chained":
            if self.min_chain_seconds is not None or self.max_chain_seconds is not None or self.transition != "cut":
                yield (
                    "min_chain_seconds, max_chain_seconds and transition crossfade belong to continuity cut: "
                    "set continuity to cut or leave them out"
                )
        elif 2 * self.shortest_chain_seconds > self.longest_chain_seconds:
            yield (
                f"max_chain_seconds {self.longest_chain_seconds:g} is less than twice min_chain_seconds "
                f"{self.shortest_chain_seconds:g}: with less room not every length of speech can be divided"
            )
        if (self.parent_job_id is None) != (self.from_clip is None):
            yield "parent_job_id and from_clip make a rerun together: give both or neither"

    @property
    def shortest_chain_seconds(self) -> float:
        """With continuity cut: the least time between two cuts."""
        return DEFAULT_MIN_CHAIN_SECONDS if self.min_chain_seconds is None else self.min_chain_seconds

    @property
    def longest_chain_seconds(self) -> float:
        """With continuity cut: the most time between two cuts."""
        return DEFAULT_MAX_CHAIN_SECONDS if self.max_chain_seconds is None else self.max_chain_seconds


def parse_request(data: dict[str, Any]) -> Request:
    """Validate `data`; PermanentError in one sentence that names each bad field, its value and what was expected."""
    try:
        return Request.model_validate(data)
    except ValidationError as error:
        problems = [*sentences(error, Request.model_fields), *_problems_of_the_rest(data, error)]
    raise PermanentError("Bad request: " + "; ".join(problems) + ".")


def _problems_of_the_rest(data: dict[str, Any], error: ValidationError) -> list[str]:
    """What the fields that are right in themselves have against each other: pydantic stops before it looks."""
    bad = {problem["loc"][0] for problem in error.errors() if problem["loc"]}
    if not bad:
        return []
    bad |= {name for group in _JUDGED_TOGETHER if bad & group for name in group}
    try:
        Request.model_validate(_PLACEHOLDERS | {name: value for name, value in data.items() if name not in bad})
    except ValidationError as second:
        return sentences(second, Request.model_fields)
    return []


# The fields that `Request._problems_between_fields` compares, and values for those that cannot be left out.
_JUDGED_TOGETHER = (
    {"continuity", "min_chain_seconds", "max_chain_seconds", "transition"},
    {"parent_job_id", "from_clip"},
)
_PLACEHOLDERS = {"image_uri": "s3://bucket/image", "audio_uri": "s3://bucket/audio", "prompt": "placeholder"}
