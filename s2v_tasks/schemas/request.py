"""A request: all parameters of one talking video, with the names of the reference implementation.

The UI form, the CLI options and `request.json` come from this model.
"""

from collections.abc import Iterable
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from s2v_tasks.schemas import request_fields as fields
from s2v_tasks.schemas.job import DEFAULT_PRIORITY, JOB_ID_PATTERN, Priority


class Request(BaseModel):
    """Parameters of one video. Omitted fields (None) take the value of the preset.

    Newer fields are left out of dumps at their default (`exclude_if`), so that older requests keep their bytes and ids.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)  # JSON has no infinity

    image_uri: Annotated[str, AfterValidator(fields.names_a_file), fields.INPUTS] = Field(
        pattern=fields.S3_URI_PATTERN,
        title="Reference picture",
        description="S3 URI of a picture of the speaker: PNG, JPEG or WebP, 32 px to 40 megapixels (WebP: 20).",
    )
    audio_uri: Annotated[str, AfterValidator(fields.names_a_file), fields.INPUTS] = Field(
        pattern=fields.S3_URI_PATTERN,
        title="Speech",
        description="S3 URI of the speech (WAV, MP3, FLAC, OGG, M4A ...). The video is as long as the speech.",
    )
    pose_video_uri: Annotated[str | None, AfterValidator(fields.names_a_file), fields.INPUTS] = Field(
        None,
        pattern=fields.S3_URI_PATTERN,
        title="Pose video",
        description="Optional S3 URI of a pose video that guides the movement of the body. It is converted to 16 fps.",
    )
    prompt: Annotated[str, AfterValidator(fields.has_words), fields.WHAT_TO_MAKE] = Field(
        min_length=1,
        max_length=fields.MAX_PROMPT_CHARACTERS,
        title="Prompt",
        description="Describe the picture, and how the person speaks and moves.",
    )
    preset: Annotated[str, fields.WHAT_TO_MAKE] = Field(
        "balanced",
        pattern=r"^[a-z][a-z0-9_-]{0,31}$",
        title="Preset",
        description="A set of defaults for the fields that you leave empty.",
    )
    num_clip: Annotated[int | None, fields.WHAT_TO_MAKE] = Field(
        None,
        ge=1,
        le=fields.MAX_CLIPS,
        title="Number of clips",
        description="Empty: as many clips as the speech needs. A smaller number makes a preview of the beginning.",
    )
    infer_frames: Annotated[int | None, fields.SAMPLING] = Field(
        None,
        ge=16,
        le=120,
        multiple_of=4,
        title="Frames per clip",
        description="Frames per clip at 16 fps: a multiple of 4, from 16 (1 s) to 120 (7.5 s).",
    )
    sample_steps: Annotated[int | None, fields.SAMPLING] = Field(
        None,
        ge=1,
        le=100,
        title="Solver steps",
        description="Denoising steps of each clip. More steps cost more time.",
    )
    sample_guide_scale: Annotated[float | None, fields.SAMPLING] = Field(
        None,
        ge=1.0,
        le=20.0,
        title="Guidance scale",
        description="How strongly the video follows prompt and speech. 1 turns guidance off and halves the cost.",
    )
    guide_steps: Annotated[list[fields.StepIndex] | None, AfterValidator(fields.is_range), fields.SAMPLING] = Field(
        None,
        min_length=2,
        max_length=2,
        title="Guided steps",
        exclude_if=fields.is_none,
        description="Steps with guidance, from the first (counted from 0) to before the second: [0, 10] guides the "
        "first ten steps. The other steps cost half. Empty: all steps.",
    )
    sample_shift: Annotated[float | None, fields.SAMPLING] = Field(
        None,
        ge=1.0,
        le=20.0,
        title="Schedule shift",
        description="Shift of the noise schedule. Empty: 3 up to 480*832 pixels, 5 from 1024*704.",
    )
    sample_solver: Annotated[fields.Solver | None, fields.SAMPLING] = Field(
        None, title="Solver", description="unipc (default), dpm++, or euler for distilled models."
    )
    adapters: Annotated[list[fields.Adapter] | None, AfterValidator(fields.are_different), fields.SAMPLING] = Field(
        None,
        max_length=fields.MAX_ADAPTERS,
        title="Adapters",
        exclude_if=fields.is_none,
        description="LoRA adapters of config/adapters.yaml that change the model, as a list of name and strength: "
        '[{"name": "four-steps", "strength": 1.0}]. Empty: those of the preset. []: none.',
    )
    step_cache: Annotated[fields.StepCache | None, fields.SAMPLING] = Field(
        None,
        title="Step cache",
        exclude_if=fields.is_none,
        description="Skip blocks whose result barely changes from step to step: off, quality (small error) or fast "
        "(larger error). Empty: S2V_STEP_CACHE.",
    )
    size: Annotated[str | None, AfterValidator(fields.is_legal_size), fields.WHAT_TO_MAKE] = Field(
        None,
        pattern=fields.SIZE_PATTERN,
        title="Size W*H",
        description="Limits the number of pixels; the aspect ratio is that of the reference image. Each side is a "
        "multiple of 32 from 128 to 1280, with at most 1280*720 pixels in total. The 14B model was trained for "
        "480*832 up to 1024*704 and 720p.",
    )
    base_seed: Annotated[int, fields.SAMPLING] = Field(
        -1,
        ge=-1,
        le=fields.MAX_SEED,
        title="Seed",
        description="Seed of the first clip; clip k uses seed + k. -1: derived from the job id, equal in a retry.",
    )
    start_from_ref: Annotated[bool, fields.SAMPLING] = Field(
        False,
        title="Start from the reference picture",
        description="The first clip of each chain begins with the reference picture itself.",
    )
    continuity: Annotated[fields.Continuity, fields.LONG_VIDEOS] = Field(
        "chained",
        title="Continuity",
        description="chained: each clip continues the clip before it. cut: the video starts again from the "
        "reference picture at pauses of the speech, so that a long video renders on several GPUs at once.",
    )
    min_chain_seconds: Annotated[float | None, fields.LONG_VIDEOS] = Field(
        None,
        ge=2,
        le=600,
        title="Shortest chain (s)",
        description="Only with continuity cut. Minimum seconds between two cuts. "
        f"Empty: {fields.DEFAULT_MIN_CHAIN_SECONDS:g} s.",
    )
    max_chain_seconds: Annotated[float | None, fields.LONG_VIDEOS] = Field(
        None,
        ge=4,
        le=1200,
        title="Longest chain (s)",
        description="Only with continuity cut. Maximum seconds between two cuts. A cut is forced if the speaker does "
        f"not pause. At least twice the minimum. Empty: {fields.DEFAULT_MAX_CHAIN_SECONDS:g} s.",
    )
    transition: Annotated[fields.Transition, fields.LONG_VIDEOS] = Field(
        "cut",
        title="Transition",
        description="Only with continuity cut. cut: the picture changes at once; crossfade: within 250 ms.",
    )
    clips_per_pod: Annotated[int, fields.LONG_VIDEOS] = Field(
        1,
        ge=1,
        le=16,
        title="Clips per pod",
        description="Number of consecutive clips that one process renders; it loads the model once for all of them.",
    )
    quality: Annotated[fields.Quality, fields.QUALITY] = Field(
        "report",
        title="Quality",
        description="report: each clip is measured (face, lip sync, seam, sharpness, colours). gate: a clip beyond a "
        "limit of config/quality.yaml is also rendered again with another seed before the next clip starts.",
        exclude_if=lambda value: value == "report",
    )
    max_retakes: Annotated[int, fields.QUALITY] = Field(
        fields.DEFAULT_MAX_RETAKES,
        ge=0,
        le=5,
        title="Maximum retakes",
        description="Only with quality gate. Maximum number of further takes of a clip, within the budget of the job.",
        exclude_if=lambda value: value == fields.DEFAULT_MAX_RETAKES,
    )
    after_retakes: Annotated[fields.AfterRetakes, fields.QUALITY] = Field(
        "keep_best",
        title="After the last retake",
        description="Only with quality gate. keep_best: continue with the best take and a warning. stop: fail the job.",
        exclude_if=lambda value: value == "keep_best",
    )
    approval: Annotated[fields.Approval, fields.QUALITY] = Field(
        "none",
        title="Approval",
        description="result: a person approves the finished video before it is published. each_clip: also each clip "
        "before the next one is rendered; no GPU waits. Rejected clips are rendered again with changed fields.",
        exclude_if=lambda value: value == "none",
    )
    priority: Annotated[Priority, fields.BOOKKEEPING] = Field(
        DEFAULT_PRIORITY, title="Priority", description="Jobs of higher priority get a free GPU first."
    )
    labels: Annotated[dict[str, str], AfterValidator(fields.are_plain), fields.BOOKKEEPING] = Field(
        {},
        max_length=fields.MAX_LABELS,
        title="Labels",
        description=f"At most {fields.MAX_LABELS} names and values, to find jobs and to sum up their cost. Each has "
        'up to 63 letters, digits, dots, dashes and underscores, for example {"team": "news"}.',
    )
    max_gpu_seconds: Annotated[float | None, fields.BOOKKEEPING] = Field(
        None,
        gt=0,
        title="Maximum GPU-seconds",
        description="A plan that needs more is refused before rendering begins.",
    )
    max_cost: Annotated[float | None, fields.BOOKKEEPING] = Field(
        None,
        gt=0,
        title="Maximum cost",
        description="In the currency of the configured GPU. A plan that costs more is refused before rendering begins.",
    )
    webhook_url: Annotated[str | None, fields.BOOKKEEPING] = Field(
        None,
        pattern=fields.WEBHOOK_URL_PATTERN,
        max_length=1000,
        title="Webhook",
        description="Optional http(s) URL that gets a message when the job starts, a clip is done, or the job ends.",
    )
    parent_job_id: Annotated[str | None, fields.RERUN] = Field(
        None,
        pattern=JOB_ID_PATTERN,
        title="Earlier job",
        description="Rerun: the job to reuse. Its clips before `from_clip` are kept, with its frames, size and seeds.",
    )
    from_clip: Annotated[int | None, fields.RERUN] = Field(
        None,
        ge=0,
        lt=fields.MAX_CLIPS,
        title="Rerun from clip",
        description="Rerun: number of the first clip that is rendered again, counted from 0.",
    )

    @field_validator("*", mode="before")
    @classmethod
    def _numbers_are_plain(cls, value: Any, info: ValidationInfo) -> Any:
        return fields.plain_number(value, cls.model_fields[str(info.field_name)])

    @model_validator(mode="after")
    def _fields_fit_each_other(self) -> Self:
        if problems := [*self._problems_between_fields()]:
            raise ValueError("; ".join(problems))
        return self

    def _problems_between_fields(self) -> Iterable[str]:
        if self.continuity == "chained":
            if self.min_chain_seconds is not None or self.max_chain_seconds is not None or self.transition != "cut":
                yield (
                    "min_chain_seconds, max_chain_seconds and transition crossfade need continuity cut: set "
                    "continuity to cut or leave them out"
                )
        elif 2 * self.shortest_chain_seconds > self.longest_chain_seconds:
            yield (
                f"max_chain_seconds {self.longest_chain_seconds:g} is less than twice min_chain_seconds "
                f"{self.shortest_chain_seconds:g}: expected {2 * self.shortest_chain_seconds:g} or more, so that every "
                "length of speech can be divided"
            )
        if self.approval == "each_clip" and (self.continuity != "chained" or self.clips_per_pod != 1):
            yield (
                "approval each_clip needs continuity chained and clips_per_pod 1, because one clip is approved at a "
                "time: set both, or use approval result"
            )
        if (self.parent_job_id is None) != (self.from_clip is None):
            yield "a rerun needs both parent_job_id and from_clip: give both or neither"

    @property
    def shortest_chain_seconds(self) -> float:
        """Return the minimum seconds between two cuts, with continuity cut."""
        return fields.DEFAULT_MIN_CHAIN_SECONDS if self.min_chain_seconds is None else self.min_chain_seconds

    @property
    def longest_chain_seconds(self) -> float:
        """Return the maximum seconds between two cuts, with continuity cut."""
        return fields.DEFAULT_MAX_CHAIN_SECONDS if self.max_chain_seconds is None else self.max_chain_seconds
