"""Check the limits of lip sync: the measures that are findings."""

from pathlib import Path
from typing import Any

import pytest

from s2v_tasks.schemas.quality import LipSyncQuality
from s2v_tasks.validation.quality import judge_clip
from s2v_tasks.validation.quality_limits import load_quality_limits
from tests.unit.rendering.test_takes import MEASURED

LIMITS = load_quality_limits(Path(__file__).parents[3] / "config")
LATE: dict[str, Any] = {
    "lag_ms": 150.0, "correlation": 0.9, "other_correlation": 0.1, "speech_share": 0.9, "opening_range": 0.1,
    "silent_opening_range": 0.2,
}  # fmt: skip


def found(num_frames: int = 48, **changes: Any) -> set[str]:
    """Return the measures of lip sync that are beyond their limits, in a clip with a face in all frames."""
    clip = MEASURED.model_copy(update={"end_frame": num_frames, "lip_sync": LipSyncQuality(**LATE | changes)})
    return {finding.measure for finding in judge_clip(clip, None, LIMITS)}


@pytest.mark.parametrize(
    ("num_frames", "changes", "measures"),
    [
        (48, {}, {"lip_sync_lag_ms", "silent_mouth_ratio"}),
        (47, {}, set()),
        (47, {"opening_range": 0.001}, {"still_mouth"}),
        (48, {"speech_share": 0.3}, {"lip_sync_lag_ms", "silent_mouth_ratio"}),
        (48, {"speech_share": 0.29}, set()),
        (48, {"lag_ms": -150.0}, {"lip_sync_lag_ms", "silent_mouth_ratio"}),
        (48, {"lag_ms": None}, {"silent_mouth_ratio"}),
        (48, {"lag_ms": 90.0, "silent_opening_range": 0.09}, set()),
        (48, {"silent_opening_range": None}, {"lip_sync_lag_ms"}),
        (48, {"opening_range": None}, {"lip_sync_lag_ms"}),
        (48, {"correlation": 0.1}, {"lip_sync_margin"}),
        (48, {"correlation": 0.1, "opening_range": 0.02}, {"still_mouth"}),
        (47, {"correlation": 0.1, "opening_range": 0.02}, set()),
        (48, {"correlation": 0.25}, {"lip_sync_lag_ms", "silent_mouth_ratio"}),
        (48, {"opening_range": 0.001}, {"still_mouth"}),
    ],
)
def test_lip_sync_is_judged_with_enough_speech(num_frames: int, changes: dict[str, Any], measures: set[str]) -> None:
    """Lag and margin are judged in clips of three seconds with enough speech; a still mouth is a finding of its own."""
    assert found(num_frames, **changes) == measures
