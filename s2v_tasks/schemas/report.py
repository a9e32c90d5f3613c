"""The report of a job: properties of the finished video, expectations of the plan, and results of the checks."""

from fractions import Fraction
from typing import Literal

from pydantic import BaseModel, ConfigDict

from s2v_tasks.schemas.quality import VideoQuality


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class VideoFacts(_Model):
    """Measurements of a video, made by decoding it completely.

    Luma is 0 (black) to 255 (white); levels are dB of full scale, never below -120. Fields about sound are None
    for a video without sound.
    """

    size_bytes: int
    streams: tuple[str, ...]  # kinds in file order, e.g. ("video", "audio")
    video_codec: str
    pixel_format: str
    colour: tuple[str, str, str, str]  # matrix, primaries, transfer, range
    width: int
    height: int
    fps: Fraction
    num_frames: int
    video_start_seconds: Fraction
    video_duration_seconds: Fraction
    audio_codec: str | None
    audio_sample_rate: int | None
    audio_channels: int | None
    audio_start_seconds: Fraction | None
    audio_duration_seconds: Fraction | None
    mean_luma: float
    darkest_frame_luma: float  # smallest mean luma of a frame
    luma_std: float  # standard deviation inside a frame, mean over all frames
    flattest_frame_luma_std: float  # smallest standard deviation inside a frame
    longest_still_frames: int  # longest run of frames with nearly the same picture
    audio_rms_dbfs: float | None
    audio_peak_dbfs: float | None
    decode_errors: tuple[str, ...]


class Expected(_Model):
    """Expectations of the plan.

    `num_held_frames` frames at the start show one picture by design. `speech_rms_dbfs` is the level of the part of the
    16 kHz speech that the video covers.
    """

    width: int
    height: int
    fps: int
    num_frames: int
    num_held_frames: int
    speech_rms_dbfs: float


class CheckResult(_Model):
    """Result of one check; `message` is one sentence."""

    name: str
    ok: bool
    measured: str
    expected: str
    message: str


class QualityReport(_Model):
    """Quality of the video, from the measures of its clips.

    `num_takes`: number of measured takes of each planned clip, 0 if not measured; `kept_takes`: the kept takes.
    """

    sentences: tuple[str, ...]
    video: VideoQuality | None
    num_takes: tuple[int, ...]
    kept_takes: tuple[int, ...]


class Report(_Model):
    """Measurements, expectations and the results of all checks; `quality` is None if no clip was measured."""

    schema_version: Literal[1] = 1
    facts: VideoFacts
    expected: Expected
    checks: tuple[CheckResult, ...]
    quality: QualityReport | None = None

    @property
    def ok(self) -> bool:
        """Return True if every check passed."""
        return not self.failures

    @property
    def failures(self) -> tuple[CheckResult, ...]:
        """Return the checks that failed."""
        return tuple(check for check in self.checks if not check.ok)
