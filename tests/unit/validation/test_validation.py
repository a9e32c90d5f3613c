"""Check the checks over the finished video."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from s2v_tasks.errors import ConfigurationError
from s2v_tasks.schemas.report import Expected, Report, VideoFacts
from s2v_tasks.validation.checks import Thresholds, load_thresholds, validate

CONFIG = Path(__file__).parents[3] / "config"

GOOD = VideoFacts(
    size_bytes=1_000_000,
    streams=("video", "audio"),
    video_codec="h264",
    pixel_format="yuv420p",
    colour=("bt709", "bt709", "bt709", "tv"),
    width=480,
    height=832,
    fps=Fraction(16),
    num_frames=160,
    video_start_seconds=Fraction(0),
    video_duration_seconds=Fraction(10),
    audio_codec="aac",
    audio_sample_rate=44100,
    audio_channels=2,
    audio_start_seconds=Fraction(0),
    audio_duration_seconds=Fraction(10),
    mean_luma=110.0,
    darkest_frame_luma=90.0,
    luma_std=40.0,
    flattest_frame_luma_std=30.0,
    longest_still_frames=5,
    audio_rms_dbfs=-21.0,
    audio_peak_dbfs=-3.0,
    decode_errors=(),
)
PLANNED = Expected(width=480, height=832, fps=16, num_frames=160, num_held_frames=4, speech_rms_dbfs=-20.0)


@pytest.fixture(scope="module")
def thresholds() -> Thresholds:
    """The shipped thresholds."""
    return load_thresholds(CONFIG)


def _failed(thresholds: Thresholds, facts: dict[str, Any], expected: dict[str, Any] | None = None) -> set[str]:
    report = validate(GOOD.model_copy(update=facts), PLANNED.model_copy(update=expected or {}), thresholds)
    assert report.ok == (not report.failures)
    return {check.name for check in report.failures}


def test_good_video_passes_every_check(thresholds: Thresholds) -> None:
    """The report of a video as planned has no failure and can be written as JSON."""
    report = validate(GOOD, PLANNED, thresholds)
    assert report.ok
    assert len({check.name for check in report.checks}) == len(report.checks) >= 13
    assert Report.model_validate_json(report.model_dump_json()) == report


@pytest.mark.parametrize(
    ("facts", "failed"),
    [
        ({"streams": ("video",), "audio_codec": None}, {"streams"}),
        ({"streams": ("video", "audio", "data")}, {"streams"}),
        ({"video_codec": "hevc"}, {"streams"}),
        ({"pixel_format": "yuv444p"}, {"pixel_format"}),
        ({"colour": ("unknown", "bt709", "bt709", "tv")}, {"pixel_format"}),
        ({"width": 832, "height": 480}, {"size"}),
        ({"fps": Fraction(25)}, {"frame_rate"}),
        ({"num_frames": 159}, {"frame_count"}),
        ({"num_frames": 161}, {"frame_count"}),
        ({"video_duration_seconds": Fraction(161, 16)}, {"video_duration"}),
        ({"audio_duration_seconds": Fraction(159, 16)}, {"audio_duration"}),
        ({"audio_duration_seconds": None}, {"audio_duration"}),
        ({"audio_start_seconds": Fraction(3, 16)}, {"sync"}),
        ({"video_start_seconds": Fraction(1, 16)}, {"sync"}),
        ({"mean_luma": 1.0}, {"not_black"}),
        ({"darkest_frame_luma": 0.0}, {"not_black"}),
        ({"flattest_frame_luma_std": 0.1}, {"not_flat"}),
        ({"longest_still_frames": 33}, {"not_frozen"}),
        ({"audio_rms_dbfs": -40.0}, {"not_silent"}),
        ({"audio_rms_dbfs": None}, {"not_silent"}),
        ({"decode_errors": ("decoding failed: Invalid NAL unit",)}, {"decodes"}),
    ],
)
def test_each_fault_fails_its_check(facts: dict[str, Any], failed: set[str], thresholds: Thresholds) -> None:
    """Each fault fails the check of its name and no other."""
    assert _failed(thresholds, facts) == failed


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({"audio_duration_seconds": Fraction(10) + Fraction(1, 17)}, {}),
        ({"longest_still_frames": 32}, {}),
        ({"audio_rms_dbfs": -120.0}, {"speech_rms_dbfs": -80.0}),
        ({"audio_rms_dbfs": -26.0}, {}),
        (
            {
                "num_frames": 4,
                "longest_still_frames": 4,
                "video_duration_seconds": Fraction(1, 4),
                "audio_duration_seconds": Fraction(1, 4),
            },
            {"num_frames": 4},
        ),
    ],
)
def test_small_deviations_pass(facts: dict[str, Any], expected: dict[str, Any], thresholds: Thresholds) -> None:
    """Less than a frame of audio, a pause, silence for silent speech and held first frames are no faults."""
    assert _failed(thresholds, facts, expected) == set()


def test_short_video_that_stands_still_fails(thresholds: Thresholds) -> None:
    """One second of a frozen picture fails, although it is shorter than the limit for long videos."""
    short = {"num_frames": 16, "video_duration_seconds": Fraction(1), "audio_duration_seconds": Fraction(1)}
    assert _failed(thresholds, {**short, "longest_still_frames": 16}, {"num_frames": 16}) == {"not_frozen"}


def test_failure_reads_as_a_sentence(thresholds: Thresholds) -> None:
    """The message has the check, the measured value and the expectation."""
    report = validate(GOOD.model_copy(update={"num_frames": 159}), PLANNED, thresholds)
    assert [check.message for check in report.failures] == ["frame count: 159 frames, expected 160 frames"]


@pytest.mark.parametrize(
    "text",
    [
        "min_mean_luma: 8",
        "max_start_offset_seconds: [",
        "",
        (CONFIG / "validation.yaml").read_text() + "\nmax_luck: 3\n",
    ],
)
def test_wrong_thresholds_are_refused(text: str, tmp_path: Path) -> None:
    """Missing and unknown keys and broken YAML are configuration errors that name the file."""
    (tmp_path / "validation.yaml").write_text(text)
    with pytest.raises(ConfigurationError, match=r"validation\.yaml"):
        load_thresholds(tmp_path)


def test_missing_thresholds_are_a_configuration_error(tmp_path: Path) -> None:
    """A missing file is named, with the remedy."""
    with pytest.raises(ConfigurationError, match="S2V_CONFIG_DIR"):
        load_thresholds(tmp_path)
