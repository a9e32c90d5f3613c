"""The plan of a job: every clip and every frame, fixed before a GPU starts."""

from fractions import Fraction
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

from s2v_tasks.schemas.manifest import StagedFaces, StagedSound, fingerprint
from s2v_tasks.schemas.request_fields import Solver, is_none

FPS = 16


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SpeechFacts(_Model):
    """Exact length of the decoded speech, in samples at its own rate."""

    num_samples: int
    sample_rate: int

    @property
    def duration_seconds(self) -> Fraction:
        """Return the length in seconds."""
        return Fraction(self.num_samples, self.sample_rate)


class InputFacts(_Model):
    """Properties of the staged inputs that lead to warnings; None if unknown."""

    speech_notes: tuple[str, ...] = ()
    speech_rms_dbfs: float | None = None
    pose_frames: int | None = None
    image_warning: str | None = None
    faces: StagedFaces | None = None
    sound: StagedSound | None = None


class Sampling(_Model):
    """Sampling parameters, the same for all clips."""

    sample_steps: int
    sample_guide_scale: float
    sample_shift: float
    sample_solver: Solver
    start_from_ref: bool
    guide_steps: tuple[int, int] | None = None  # [from, to): steps with guidance; None: all
    step_cache: float | None = None  # threshold of the first-block cache; None: that of the installation

    @property
    def guided_steps(self) -> int:
        """Return the number of steps that have two branches, cond and uncond."""
        if self.sample_guide_scale <= 1:
            return 0
        first, end = self.guide_steps or (0, self.sample_steps)
        return end - first

    @model_serializer(mode="wrap")
    def _leave_out_none(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out later fields that are None, so that the fingerprints of earlier clips stay."""
        return {name: value for name, value in handler(self).items() if value is not None}


class PlannedAdapter(_Model):
    """An adapter that is merged into the weights: the digest of its file, and the alpha of its entry, if it has one."""

    name: str
    sha256: str
    strength: float
    alpha: float | None = Field(None, exclude_if=is_none)


class ClipPlan(_Model):
    """One clip: it renders `infer_frames` frames and delivers the frames [start_frame, end_frame) of the video.

    In a cross-fade between two chains, the first `fade_in_frames` frames of the later chain are mixed with the
    `fade_out_frames` frames that the last clip of the earlier chain has beyond its `end_frame`.
    """

    clip_index: int
    chain_index: int
    predecessor: int | None  # clip_index of the clip before it in its chain; None starts a chain from the picture
    successor: int | None
    infer_frames: int
    start_frame: int
    end_frame: int
    seed: int
    latent_shape: tuple[int, int, int, int]  # channels, frames, height, width
    tokens: int
    pflops: float
    fade_in_frames: int = 0
    fade_out_frames: int = 0

    @property
    def num_frames(self) -> int:
        """Return the number of delivered frames."""
        return self.end_frame - self.start_frame

    @property
    def fades(self) -> tuple[int, int]:
        """Return the numbers of frames that fade in and that fade out."""
        return self.fade_in_frames, self.fade_out_frames

    @property
    def stored_frames(self) -> int:
        """Return the number of frames in the file of the clip: delivered frames and frames that fade out."""
        return self.num_frames + self.fade_out_frames


class InheritedClip(_Model):
    """A clip that is copied from the parent job; `source_job_id` rendered it."""

    clip_index: int
    fingerprint: str
    source_job_id: str
    source_manifest_key: str


class Cut(_Model):
    """A frame at which a new chain starts from the reference image.

    `pause_seconds` is the length of the pause in the speech there; None for a cut outside a pause.
    """

    frame: int
    pause_seconds: float | None


class Estimate(_Model):
    """Expected cost of the plan on the configured GPU.

    The worst case, with all retakes of all clips, is stated for `quality: gate` only.
    """

    pflops: float
    gpu: str
    gpu_seconds: float
    longest_chain_seconds: float  # a lower bound of the duration on any number of GPUs
    cost: float
    currency: str
    peak_gpu_memory_gib: float
    vae_share: float | None = None  # of the seconds in which clips are computed
    worst_case_gpu_seconds: float | None = Field(None, exclude_if=is_none)
    worst_case_cost: float | None = Field(None, exclude_if=is_none)


class Plan(_Model):
    """All decisions about a job: later steps do not change the number of frames or clips."""

    schema_version: Literal[1] = 1
    job_id: str
    preset: str
    preview: bool = False  # a quick look with few steps; a rerun with another preset renders the final video
    model: str
    fps: Literal[16] = 16
    width: int
    height: int
    speech: SpeechFacts
    num_frames: int  # delivered frames of the whole video
    covered_seconds: float  # of the speech; less than its length in a preview
    sampling: Sampling
    adapters: tuple[PlannedAdapter, ...] = ()
    base_seed: int
    clips: tuple[ClipPlan, ...]
    cuts: tuple[Cut, ...] = ()
    clips_per_pod: int = 1
    inherited: tuple[InheritedClip, ...] = ()  # the first clips of a rerun, copied from its parent
    estimate: Estimate
    warnings: tuple[str, ...] = ()

    @property
    def duration_seconds(self) -> Fraction:
        """Return the length of the delivered video in seconds."""
        return Fraction(self.num_frames, self.fps)

    @property
    def num_clip(self) -> int:
        """Return the number of clips."""
        return len(self.clips)

    @property
    def num_chains(self) -> int:
        """Return the number of chains."""
        return len(self.cuts) + 1

    def digest_of(self, clip: ClipPlan) -> str:
        """Return the SHA-256 (hex) of the parts of the plan that affect the rendering of a clip.

        They include the lengths of all clips of its chain, which define the length of the motion state.
        """
        later = [other.infer_frames for other in self.clips if other.chain_index == clip.chain_index]
        what = clip.model_dump(mode="json", exclude={"tokens", "pflops"})  # derived by rules that may change
        size, sampling = [self.width, self.height], self.sampling.model_dump()
        return fingerprint(self.model, size, sampling, what, later, *self.adapter_fingerprint)

    @property
    def adapter_fingerprint(self) -> list[Any]:
        """Return the part of the adapters in fingerprints. Values that are not set are left out: older ones stay."""
        used = [[item.sha256, item.strength, *([item.alpha] if item.alpha else [])] for item in self.adapters]
        return [{"adapters": used}] if used else []
