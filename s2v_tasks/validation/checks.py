"""Checks of a finished video: pure functions of measured facts, expectations and limits (`config/validation.yaml`).

To add a check, write a function that returns `Verdict` and decorate it with `@check`. Its name is its name in the
report.
"""

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from s2v_tasks.schemas.config_files import read_model
from s2v_tasks.schemas.report import CheckResult, Expected, Report, VideoFacts


class Thresholds(BaseModel):
    """Limits of the checks of a video. Luma is 0-255, levels are dB of full scale."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_start_offset_seconds: float = Field(ge=0)
    min_mean_luma: float = Field(ge=0, le=255)
    min_frame_luma: float = Field(ge=0, le=255)
    min_frame_luma_std: float = Field(ge=0, le=128)
    max_still_seconds: float = Field(gt=0)
    max_still_share: float = Field(gt=0, le=1)
    silent_below_dbfs: float = Field(ge=-120, le=0)
    max_level_loss_db: float = Field(ge=0)


def load_thresholds(config_dir: Path) -> Thresholds:
    """Return the thresholds of `config_dir`/validation.yaml; ConfigurationError says what is wrong with the file."""
    return read_model(Thresholds, config_dir / "validation.yaml", "validation thresholds")


@dataclass(frozen=True)
class Verdict:
    """Result of a check, in words for the report."""

    ok: bool
    measured: str
    expected: str


Check = Callable[[VideoFacts, Expected, Thresholds], Verdict]
_CHECKS: list[Check] = []


def check(function: Check) -> Check:
    """Register a check; checks run in the order of this file."""
    _CHECKS.append(function)
    return function


def validate(facts: VideoFacts, expected: Expected, thresholds: Thresholds) -> Report:
    """Run all checks on a finished video and return their report; a video is published if `Report.ok`."""
    results = tuple(_result(function, function(facts, expected, thresholds)) for function in _CHECKS)
    return Report(facts=facts, expected=expected, checks=results)


def _result(function: Check, verdict: Verdict) -> CheckResult:
    name = function.__name__
    title = name.replace("_", " ")
    message = f"{title}: {verdict.measured}" + ("" if verdict.ok else f", expected {verdict.expected}")
    return CheckResult(name=name, message=message, **vars(verdict))


@check
def streams(facts: VideoFacts, expected: Expected, thresholds: Thresholds) -> Verdict:
    """Check for one video and one audio stream, in the codecs that all players support."""
    measured = f"{' + '.join(facts.streams)} ({facts.video_codec}, {facts.audio_codec})"
    wanted = "video + audio (h264, aac)"
    return Verdict(measured == wanted, measured, wanted)


@check
def pixel_format(facts: VideoFacts, expected: Expected, thresholds: Thresholds) -> Verdict:
    """Check for 8-bit 4:2:0 with the colour tags of the conversion."""
    measured = f"{facts.pixel_format} {'/'.join(facts.colour)}"
    wanted = "yuv420p bt709/bt709/bt709/tv"
    return Verdict(measured == wanted, measured, wanted)


@check
def size(facts: VideoFacts, expected: Expected, thresholds: Thresholds) -> Verdict:
    """Check for the planned size in pixels."""
    measured, wanted = f"{facts.width}x{facts.height}", f"{expected.width}x{expected.height}"
    return Verdict(measured == wanted, measured, wanted)


@check
def frame_rate(facts: VideoFacts, expected: Expected, thresholds: Thresholds) -> Verdict:
    """Check for exactly the planned frame rate."""
    return Verdict(facts.fps == expected.fps, f"{facts.fps} fps", f"{expected.fps} fps")


@check
def frame_count(facts: VideoFacts, expected: Expected, thresholds: Thresholds) -> Verdict:
    """Check for the planned number of decodable frames."""
    ok = facts.num_frames == expected.num_frames
    return Verdict(ok, f"{facts.num_frames} frames", f"{expected.num_frames} frames")


@check
def video_duration(facts: VideoFacts, expected: Expected, thresholds: Thresholds) -> Verdict:
    """Check that the video stream has the planned length, to within one frame."""
    return _duration(facts.video_duration_seconds, expected)


@check
def audio_duration(facts: VideoFacts, expected: Expected, thresholds: Thresholds) -> Verdict:
    """Check that the audio stream has the planned length, to within one frame."""
    return _duration(facts.audio_duration_seconds or Fraction(0), expected)


@check
def sync(facts: VideoFacts, expected: Expected, thresholds: Thresholds) -> Verdict:
    """Check that both streams start at zero."""
    starts = (facts.video_start_seconds, facts.audio_start_seconds or Fraction(0))
    measured = f"picture starts at {float(starts[0]):.4f} s, sound at {float(starts[1]):.4f} s"
    ok = all(abs(start) <= thresholds.max_start_offset_seconds for start in starts)
    return Verdict(ok, measured, f"both at 0 s (+-{thresholds.max_start_offset_seconds:g} s)")


@check
def not_black(facts: VideoFacts, expected: Expected, thresholds: Thresholds) -> Verdict:
    """Check that neither the video nor any of its frames is black."""
    ok = facts.mean_luma >= thresholds.min_mean_luma and facts.darkest_frame_luma >= thresholds.min_frame_luma
    measured = f"luma {facts.mean_luma:.1f}, in the darkest frame {facts.darkest_frame_luma:.1f}"
    wanted = f"at least {thresholds.min_mean_luma:g}, in every frame at least {thresholds.min_frame_luma:g}"
    return Verdict(ok, measured, wanted)


@check
def not_flat(facts: VideoFacts, expected: Expected, thresholds: Thresholds) -> Verdict:
    """Check that no frame has only one colour."""
    ok = facts.flattest_frame_luma_std >= thresholds.min_frame_luma_std
    measured = f"luma deviation {facts.flattest_frame_luma_std:.1f} in the flattest frame"
    return Verdict(ok, measured, f"at least {thresholds.min_frame_luma_std:g}")


@check
def not_frozen(facts: VideoFacts, expected: Expected, thresholds: Thresholds) -> Verdict:
    """Check that the picture moves; only the held frames at the start may repeat beyond the limit."""
    seconds = min(thresholds.max_still_seconds, thresholds.max_still_share * expected.num_frames / expected.fps)
    most = max(expected.num_held_frames, int(seconds * expected.fps))
    measured = f"at most {facts.longest_still_frames} frames in a row show the same picture"
    return Verdict(facts.longest_still_frames <= most, measured, f"at most {most} frames")


@check
def not_silent(facts: VideoFacts, expected: Expected, thresholds: Thresholds) -> Verdict:
    """Check that the sound is about as loud as the speech, unless the speech is silent."""
    level = facts.audio_rms_dbfs
    measured = "no sound" if level is None else f"sound level {level:.1f} dBFS"
    if expected.speech_rms_dbfs < thresholds.silent_below_dbfs:
        return Verdict(True, f"{measured} (the speech is silent)", "any level")
    least = expected.speech_rms_dbfs - thresholds.max_level_loss_db
    return Verdict(level is not None and level >= least, measured, f"at least {least:.1f} dBFS")


@check
def decodes(facts: VideoFacts, expected: Expected, thresholds: Thresholds) -> Verdict:
    """Check that every packet decodes."""
    return Verdict(not facts.decode_errors, "; ".join(facts.decode_errors) or "no decode errors", "no decode errors")


def _duration(measured: Fraction, expected: Expected) -> Verdict:
    wanted, one_frame = Fraction(expected.num_frames, expected.fps), Fraction(1, expected.fps)
    ok = abs(measured - wanted) < one_frame
    return Verdict(ok, f"{float(measured):.4f} s", f"{float(wanted):.4f} s to within one frame")
