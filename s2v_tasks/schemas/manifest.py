"""Manifests: outputs and inputs of a step, the program that produced them, and the facts of the step.

A manifest is written last, so its presence means that the outputs are complete.

Each step has its own type of facts. Their version is `Manifest.schema_version`. Within a version fields are only added,
with a default, so that manifests of earlier programs load. Facts that a later program has added are kept unchanged.
Only the fields that were set are written.
"""

import hashlib
import json
from datetime import datetime
from typing import Any, Literal, Self, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    SerializeAsAny,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
)

from s2v_tasks.schemas import steps

F = TypeVar("F", bound="Facts")


class _Values(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True)

    @model_serializer(mode="wrap")
    def _leave_out_unset(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        written = self.model_fields_set
        return {name: value for name, value in handler(self).items() if name in written}


class Facts(_Values):
    """Facts of any step."""

    source_job_id: str | None = None  # the job that made the outputs, if they are copies

    def made_by(self, job_id: str) -> Self:
        """Return these facts for a copy; `job_id` made the outputs if no earlier job is recorded."""
        return self if self.source_job_id else self.model_copy(update={"source_job_id": job_id})


class StagedFaces(_Values):
    """Faces of the reference image; the values describe the face with the best score."""

    num_faces: int
    area_share: float | None = None  # of the picture
    turn: float | None = None  # -1..1: 0 is frontal, above 0.6 a profile
    confidence: float | None = None  # of the landmarks, 0..1


class StagedSound(_Values):
    """Properties of the loudness of the speech."""

    lead_in_seconds: float
    silent_share: float
    clipped_share: float
    movement_db: float | None = None  # None: everything is silent


class StagedImage(_Values):
    """The reference image, upright: its size in pixels, a warning about its colours, and its faces."""

    width: int
    height: int
    warning: str | None = None
    faces: StagedFaces | None = None


class StagedSpeech(_Values):
    """The decoded speech: its exact length in samples, the levels in dB of full scale, sentences for its user."""

    num_samples: int
    sample_rate: int
    channels: int | None = None
    codec: str | None = None
    rms_dbfs: float | None = None
    peak_dbfs: float | None = None
    track: int | None = None
    num_tracks: int | None = None
    mix: str | None = None
    gap_seconds: float = 0.0
    late_seconds: float = 0.0
    notes: tuple[str, ...] = ()
    sound: StagedSound | None = None


class StagedPose(_Values):
    """The pose video at 16 fps."""

    num_frames: int


class StagedFacts(Facts):
    """Facts of stage_inputs."""

    image: StagedImage
    speech: StagedSpeech
    pose: StagedPose | None = None


class ConditionsFacts(Facts):
    """Facts of encode_conditions: the prompt, and the shapes of the tensors by name."""

    prompt: str | None = None
    shapes: dict[str, tuple[int, ...]] = {}


class PartialClipFacts(Facts):
    """Facts of the saved state of a clip: the finished solver steps and their seconds."""

    solver_step: int
    render_seconds: float = 0.0


class ClipFacts(Facts):
    """Facts of a rendered clip: the hardware and software that rendered it, its frames, and its cost.

    `take`, `seed` and `chain_takes` (the takes of the chain up to this clip) are set only if a retake was kept for this
    clip or an earlier one of its chain. `mfu` is the planned operations divided by the render seconds of all attempts
    and by the peak FLOPS of all devices, without loading. It is None if the peak is unknown or the first-block cache
    skipped operations.
    """

    device: str | None = None
    world_size: int = 1
    parallel_layout: str | None = None
    precision: str | None = None
    vae_precision: str | None = None
    noise_device: str | None = None
    attention: str | None = None
    compiled: bool | None = None
    weights_dtype: str | None = None
    step_cache: float | None = None
    offload: str | None = None
    adapters: dict[str, float] | None = None  # strength by name
    device_model: str | None = None
    torch_version: str | None = None
    cudnn_version: str | None = None
    load_seconds: float | None = None
    skipped_share: float | None = None  # share of the block evaluations, by the first-block cache
    peak_host_memory_bytes: int | None = None
    peak_gpu_memory_bytes: int | None = None
    start_frame: int
    end_frame: int
    infer_frames: int | None = None
    tokens: int | None = None
    pflops: float | None = None
    render_seconds: float | None = None
    gpu: str | None = None
    mfu: float | None = None
    plan_digest: str | None = None
    encoder: str | None = None  # the build that encoded the clip
    take: int = 0
    seed: int | None = None
    chain_takes: tuple[int, ...] = ()


class AssemblyFacts(Facts):
    """Facts of stitch and mux_audio: the encoders of the joined clips."""

    encoders: tuple[str, ...] = ()


class ReportFacts(Facts):
    """Facts of validate: the result of each check by name, and sentences about the quality of the video."""

    checks: dict[str, bool] = {}
    quality: tuple[str, ...] = ()


_OF_STEP: dict[str, type[Facts]] = {
    steps.STAGE_INPUTS.name: StagedFacts,
    steps.ENCODE_CONDITIONS.name: ConditionsFacts,
    steps.RENDER_CLIP.name: ClipFacts,
    steps.STITCH.name: AssemblyFacts,
    steps.MUX_AUDIO.name: AssemblyFacts,
    steps.VALIDATE.name: ReportFacts,
}


def facts_of_step(step: str, values: dict[str, Any]) -> Facts:
    """Return `values` as the facts of a step; ValidationError when they are not valid."""
    kind = _OF_STEP.get(step, Facts)
    if kind is ClipFacts and "solver_step" in values:
        kind = PartialClipFacts
    return kind.model_validate(values)


class Artifact(BaseModel):
    """One object: its key in the store, the SHA-256 (hex) of its bytes, and its size."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    key: str
    sha256: str
    size_bytes: int


class Producer(BaseModel):
    """The program that made an artifact."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    package_version: str
    git_revision: str | None = None
    image_digest: str | None = None


class Manifest(BaseModel):
    """The outputs of one step, or of one clip."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = 1
    step: str
    job_id: str
    clip_index: int | None = None
    fingerprint: str
    producer: Producer
    inputs: dict[str, Artifact]
    outputs: dict[str, Artifact]
    started_at: datetime
    finished_at: datetime
    facts: SerializeAsAny[Facts] = Facts()

    @field_validator("facts", mode="before")
    @classmethod
    def _facts_are_those_of_the_step(cls, value: Any, info: ValidationInfo) -> Any:
        values = value.model_dump() if isinstance(value, Facts) else value
        return facts_of_step(info.data["step"], values) if "step" in info.data and isinstance(values, dict) else values

    def facts_as(self, kind: type[F]) -> F:
        """Return the facts of a step that writes `kind`; TypeError if the step writes other facts."""
        if not isinstance(self.facts, kind):
            raise TypeError(f"facts of {self.step} are {type(self.facts).__name__}: expected {kind.__name__}")
        return self.facts

    @property
    def made_at(self) -> datetime | None:
        """Return the time when the job made the outputs; None if they are copies from another job."""
        return None if self.facts.source_job_id else self.finished_at


def fingerprint(*parts: Any) -> str:
    """Return the SHA-256 (hex) of the canonical JSON of `parts`: equal parts have equal fingerprints."""
    canonical = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()
