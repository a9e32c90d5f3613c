"""The report of a job: what the finished video is, what the plan promised, and every check between the two."""

from fractions import Fraction
from typing import Literal

from pydantic import BaseModel, ConfigDict


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class VideoFacts(_Model):
    """A video as measured by decoding it completely.

    Luma is 0 (black) to 255 (white); levels are dB of full scale, never below -120. Fields about sound are None
    when there is none.
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
    darkest_frame_luma: float  # smallest mean of a frame
    luma_std: float  # mean over the frames of the deviation inside a frame
    flattest_frame_luma_std: float  # smallest deviation inside a frame
    longest_still_frames: int  # most frames in a row that show nearly the same picture
    audio_rms_dbfs: float | None
    audio_peak_dbfs: float | None
    decode_errors: tuple[str, ...]


class Expected(_Model):
    """What the plan promised.

    `num_held_frames`: frames at the start that show one picture by design. `speech_rms_dbfs`: level of the part of the
    16 kHz speech that the video covers.
    """

    width: int
    height: int
    fps: int
    num_frames: int
    num_held_frames: int
    speech_rms_dbfs: float


class CheckResult(_Model):
    """One check: `message` is a sentence that says what was found, fit for a person."""

    name: str
    ok: bool
    measured: str
    expected: str
    message: str


class Report(_Model):
    """All that is known about the finished video."""

    schema_version: Literal[1] = 1
    facts: VideoFacts
    expected: Expected
    checks: tuple[CheckResult, ...]

    @property
    def ok(self) -> bool:
        """Whether every check passed."""
        return not self.failures

    @property
    def failures(self) -> tuple[CheckResult, ...]:
        """The checks that did not pass."""
        return tuple(check for check in self.checks if not check.ok)
