"""Check the talking snapshot: its unpacked files, and a mouth that follows the speech."""

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from PIL import Image

from s2v_tasks.engine.clip import Sampling
from s2v_tasks.engine.conditions import NEGATIVE_PROMPT, encode_conditions
from s2v_tasks.engine.loading import Snapshot
from s2v_tasks.engine.loading.networks import load_pipeline
from s2v_tasks.engine.options import EngineOptions
from s2v_tasks.engine.worker import Worker
from s2v_tasks.errors import ConfigurationError
from s2v_tasks.media.speech import load_waveform, normalise_speech
from s2v_tasks.perception.video import measure_video
from s2v_tasks.schemas.quality import LipSyncQuality
from s2v_tasks.verification import talker_snapshot
from s2v_tasks.verification.talker_snapshot import write_talker_snapshot
from tests.engine.clip_inputs import clip_of

SAMPLES = Path(__file__).parents[1] / "samples"
NUM_FRAMES, FPS, RATE = 64, 16, 16000
FRAME_MS = 1000 / FPS


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("talker") / "snapshot"
    write_talker_snapshot(folder)
    return folder


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    wav = tmp_path_factory.mktemp("speech") / "speech.wav"
    normalise_speech(SAMPLES / "speech.mp3", wav, max_duration_seconds=60)
    return load_waveform(wav)[: NUM_FRAMES * RATE // FPS]


def lip_sync(snapshot: Path, speech: np.ndarray, compat: Literal["corrected", "reference"]) -> LipSyncQuality:
    """Render the first clip of the sample and measure it against the speech from its start on."""
    with Image.open(SAMPLES / "portrait.jpg") as image:
        portrait = np.asarray(image.convert("RGB"))
    conditions = encode_conditions(
        Snapshot.open(snapshot),
        prompt="A portrait speaks.",
        negative_prompt=NEGATIVE_PROMPT,
        waveform=speech,
        num_frames=NUM_FRAMES,
        image_u8=portrait,
        width=128,
        height=192,
    )
    inputs = clip_of(conditions, 11)
    worker = Worker(0, 1, torch.device("cpu"))
    pipeline, _ = load_pipeline(worker, Snapshot.open(snapshot), "auto", EngineOptions(), guided=False)
    pipeline.compat = compat
    sampling = Sampling(sample_steps=4, sample_guide_scale=1.0, sample_shift=3.0, sample_solver="unipc")
    frames = pipeline.render_clip(inputs, sampling).frames_u8
    measured = measure_video(
        frames, [(0, len(frames))], fps=FPS, speech=speech, sample_rate=RATE, reference=None
    ).lip_sync
    assert measured is not None
    return measured


def test_the_mouth_follows_the_speech(snapshot: Path, speech: np.ndarray) -> None:
    """The lag is at most one frame, and the speech fits better than another one."""
    measured = lip_sync(snapshot, speech, "corrected")
    assert abs(measured.lag_ms) <= FRAME_MS
    assert measured.correlation > max(0.45, measured.other_correlation + 0.15)


def test_the_reference_lets_the_picture_lead_by_three_frames(snapshot: Path, speech: np.ndarray) -> None:
    """With compat="reference" the first three frames are lost and the mouth is 187.5 ms ahead of the sound."""
    measured = lip_sync(snapshot, speech, "reference")
    assert measured.lag_ms == pytest.approx(-3 * FRAME_MS, abs=FRAME_MS)
    assert measured.correlation > 0.45


def test_a_damaged_file_of_the_package_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sha256 is compared before anything is unpacked, and nothing is left behind."""
    damaged = bytearray(talker_snapshot.PACKED.read_bytes())
    damaged[1000] ^= 1
    (tmp_path / "packed").write_bytes(damaged)
    monkeypatch.setattr(talker_snapshot, "PACKED", tmp_path / "packed")
    with pytest.raises(ConfigurationError, match=r"packed has sha256 [0-9a-f]{64}; expected"):
        write_talker_snapshot(tmp_path / "snapshot")
    assert [path.name for path in tmp_path.iterdir()] == ["packed"]
