"""Check the plan of local files."""

import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from s2v_tasks.schemas.plan import Plan
from s2v_tasks.steps.plan_clips import plan_files

SAMPLES = Path(__file__).parents[2] / "samples"


def _wav(path: Path, left: float, right: float) -> Path:
    noise = np.random.default_rng(7).uniform(-0.5, 0.5, 2 * 16000)
    noise *= np.abs(np.sin(np.arange(len(noise)) * 2 * np.pi / 16000)) ** 2  # louder and quieter, as speech is
    with wave.open(str(path), "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes((np.stack([noise * left, noise * right], axis=1) * 32767).astype("<i2").tobytes())
    return path


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [(1, 1, []), (1, -1, ["channel 1 of 2 of the speech only"]), (0, 0, ["The speech is silent (-120 dB"])],
)
def test_plan_of_local_files_warns_of_cancelled_and_silent_speech(
    left: float, right: float, expected: list[str], tmp_path: Path
) -> None:
    """`s2v plan` warns of a speech whose channels cancel, and of a silent one."""
    with Image.open(SAMPLES / "portrait.jpg") as portrait:
        portrait.save(tmp_path / "a.png")
    shown: list[Plan] = []
    fields: dict[str, Any] = {"preset": "balanced"}
    plan_files(tmp_path / "a.png", _wav(tmp_path / "a.wav", left, right), fields, shown.append)
    (plan,) = shown
    assert len(plan.warnings) == len(expected)
    assert all(part in warning for part, warning in zip(expected, plan.warnings, strict=True))


def test_plan_of_local_files_warns_of_a_picture_without_a_face(tmp_path: Path) -> None:
    """`s2v plan` warns of a picture without a face."""
    Image.new("RGB", (832, 480), (90, 120, 150)).save(tmp_path / "a.png")
    shown: list[Plan] = []
    plan_files(tmp_path / "a.png", _wav(tmp_path / "a.wav", 1, 1), {"preset": "balanced"}, shown.append)
    (warning,) = shown[0].warnings
    assert warning.startswith("No face was found in the picture.")
