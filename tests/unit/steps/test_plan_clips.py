"""The plan of local files."""

import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from s2v_tasks.schemas.plan import Plan
from s2v_tasks.steps.plan_clips import plan_files


def _wav(path: Path, left: float, right: float) -> Path:
    noise = np.random.default_rng(7).uniform(-0.5, 0.5, 2 * 16000)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes((np.stack([noise * left, noise * right], axis=1) * 32767).astype("<i2").tobytes())
    return path


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [(1, 1, []), (1, -1, ["channel 1 of 2 of the speech alone"]), (0, 0, ["The speech is silent (-120 dB"])],
)
def test_plan_of_local_files_tells_what_is_heard(
    left: float, right: float, expected: list[str], tmp_path: Path
) -> None:
    """`s2v plan` warns of a speech whose channels cancel, and of one that is silent."""
    Image.new("RGB", (832, 480), (90, 120, 150)).save(tmp_path / "a.png")
    shown: list[Plan] = []
    fields: dict[str, Any] = {"preset": "balanced"}
    plan_files(tmp_path / "a.png", _wav(tmp_path / "a.wav", left, right), fields, shown.append)
    (plan,) = shown
    assert len(plan.warnings) == len(expected)
    assert all(part in warning for part, warning in zip(expected, plan.warnings, strict=True))
