"""The plan of a job: every clip and every frame, fixed before a GPU starts."""

from fractions import Fraction
from typing import Literal

from pydantic import BaseModel, ConfigDict

from s2v_tasks.schemas.manifest import fingerprint
from s2v_tasks.schemas.request import Solver

FPS = 16


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SpeechFacts(_Model):
    """Length of the speech as decoded: exact, in samples of its own rate."""

    num_samples: int
    sample_rate: int

    @property
    def duration_seconds(self) -> Fraction:
        return Fraction(self.num_samples, self.sample_rate)


class InputFacts(_Model):
    """What staging found that its user may not expect; None where it is not known or there is none."""

    speech_notes: tuple[str, ...] = ()
    speech_rms_dbfs: float | None = None
    pose_frames: int | None = None
    image_warning: str | None = None


class Sampling(_Model):
    """How each clip is denoised."""

    sample_steps: int
    sample_guide_scale: float
    sample_shift: float
    sample_solver: Solver
    start_from_ref: bool


class ClipPlan(_Model):
    """One clip: renders `infer_frames` frames, of which [start_frame, end_frame) of the video are delivered.

    Where chains meet in a cross-fade, the first `fade_in_frames` frames are mixed with the `fade_out_frames` frames
    that the last clip of the chain before has beyond its `end_frame`.
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
        return self.end_frame - self.start_frame

    @property
    def fades(self) -> tuple[int, int]:
        """Frames that fade in and frames that fade out."""
        return self.fade_in_frames, self.fade_out_frames

    @property
    def stored_frames(self) -> int:
        """Frames of its file: those delivered, and those that fade out beyond them."""
        return self.num_frames + self.fade_out_frames


class InheritedClip(_Model):
    """A clip that is not rendered: a copy of the parent's, which `source_job_id` rendered."""

    clip_index: int
    fingerprint: str
    source_job_id: str
    source_manifest_key: str


class Cut(_Model):
    """A new chain starts from the picture at `frame`, in a pause of the speech of so many seconds; None: in none."""

    frame: int
    pause_seconds: float | None


class Estimate(_Model):
    """What the plan costs on the configured GPU."""

    pflops: float
    gpu: str
    gpu_seconds: float
    longest_chain_seconds: float  # GPU-seconds of the longest chain: no number of GPUs is done sooner
    cost: float
    currency: str
    peak_gpu_memory_gib: float


class Plan(_Model):
    """All that the later steps need to know; no later step decides a number of frames or clips."""

    schema_version: Literal[1] = 1
    job_id: str
    preset: str
    model: str
    fps: Literal[16] = 16
    width: int
    height: int
    speech: SpeechFacts
    num_frames: int  # delivered frames of the whole video
    covered_seconds: float  # speech that is heard in the video; less than its length in a preview
    sampling: Sampling
    base_seed: int
    clips: tuple[ClipPlan, ...]
    cuts: tuple[Cut, ...] = ()
    clips_per_pod: int = 1
    inherited: tuple[InheritedClip, ...] = ()  # of a rerun: the first clips, which are its parent's
    estimate: Estimate
    warnings: tuple[str, ...] = ()

    @property
    def duration_seconds(self) -> Fraction:
        """Length of the delivered video."""
        return Fraction(self.num_frames, self.fps)

    @property
    def num_clip(self) -> int:
        return len(self.clips)

    @property
    def num_chains(self) -> int:
        return len(self.cuts) + 1

    def digest_of(self, clip: ClipPlan) -> str:
        """SHA-256 (hex) over what the plan says of how a clip is made, the rest of its chain for the motion state."""
        later = [other.infer_frames for other in self.clips if other.chain_index == clip.chain_index]
        what = clip.model_dump(mode="json", exclude={"tokens", "pflops"})  # derived, by rules that may be refined
        return fingerprint(self.model, [self.width, self.height], self.sampling.model_dump(), what, later)
