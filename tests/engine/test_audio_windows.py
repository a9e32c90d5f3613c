"""Check the encoding of long audio in windows."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from s2v_tasks.engine.audio_features import num_states_at_50
from s2v_tasks.engine.encoders import audio_encoder
from s2v_tasks.engine.encoders.audio_encoder import WINDOW_STATES, JoinedStates, Window, windows_over
from s2v_tasks.engine.loading import Snapshot

MINUTE = 60 * 16000


def speech(num_samples: int) -> NDArray[np.float32]:
    """Return audio with syllables, pauses and breath, whose parts differ."""
    seconds = np.arange(num_samples) / 16000
    loudness = (np.sin(2 * np.pi * 0.3 * seconds) > -0.3) * (0.2 + 0.8 * np.abs(np.sin(2 * np.pi * 2.1 * seconds)))
    tone = 0.1 * np.sin(2 * np.pi * (140 + 40 * np.sin(seconds)) * seconds)
    breath = 0.03 * np.random.default_rng(0).standard_normal(num_samples)
    result: NDArray[np.float32] = (loudness * (tone + breath)).astype(np.float32)
    return result


@pytest.mark.parametrize("num_samples", [MINUTE + 400, 961_000, 1_616_001, 9_600_123, 60 * MINUTE])
def test_windows_cover_every_state(num_samples: int) -> None:
    """The samples of a window give exactly its states, and every state of the audio belongs to a window."""
    windows = windows_over(num_samples)
    weights = torch.zeros(num_states_at_50(num_samples))
    for window in windows:
        assert window.samples.stop <= num_samples
        assert num_states_at_50(window.samples.stop - window.samples.start) == window.end - window.start
        weights[window.start : window.end] += window.weights()
    assert len(windows) > 1
    assert weights.min() > 0


def test_a_minute_is_one_window() -> None:
    """Audio of up to a minute and the rest of its last state is not split."""
    for num_samples in (400, 16000, MINUTE, MINUTE + 399):
        assert windows_over(num_samples) == [Window(0, num_states_at_50(num_samples), num_states_at_50(num_samples))]


def test_ends_of_windows_do_not_count() -> None:
    """States near the inner ends of a window are dropped when windows are joined, and equal states stay equal."""
    num_samples = MINUTE + 16000
    joined = JoinedStates()
    for window in windows_over(num_samples):
        states = torch.ones(2, WINDOW_STATES, 3)
        if window.start > 0:
            states[:, : audio_encoder._UNUSED_STATES + 1] = 1000
        if window.end < window.num_states:
            states[:, -audio_encoder._UNUSED_STATES - 1 :] = 1000
        joined.add(window, states)
    torch.testing.assert_close(joined.result(), torch.ones(2, num_states_at_50(num_samples), 3))


def test_windows_differ_little_from_the_whole(tiny_snapshot_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """66 s in windows give states close to those of one pass, also for a random network without locality."""
    encoder = Snapshot.open(tiny_snapshot_path).load_audio_encoder("cpu")
    waveform = speech(66 * 16000)
    joined = encoder.encode(waveform)
    monkeypatch.setattr(audio_encoder, "WINDOW_STATES", 4000)
    whole = encoder.encode(waveform)
    difference = (joined - whole).abs()
    print(f"windowed against whole: max {difference.max():.2e}, mean {difference.mean():.2e}, spread {whole.std():.2f}")
    assert 0 < difference.max() < 0.5
    assert difference.mean() < 0.01 * whole.std()
