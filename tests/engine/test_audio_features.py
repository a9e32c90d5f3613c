"""Check the audio features of each video frame."""

import numpy as np
import pytest
import torch

from s2v_tasks.engine.audio_features import (
    feature_indices,
    frame_features,
    num_features_at_30,
    num_states_at_50,
    reference_num_repeat,
    resample_50_to_30,
)
from s2v_tasks.errors import PermanentError


def test_first_indices_round_halves_to_even() -> None:
    """Frames read the nearest 30 Hz feature, halves rounded to even, and never one ahead of the audio."""
    assert feature_indices(17).tolist() == [0, 2, 4, 6, 8, 9, 11, 13, 15, 17, 19, 21, 22, 24, 26, 28, 30]
    assert feature_indices(9600).tolist() == np.rint(np.arange(9600) * 1.875).astype(int).tolist()


@pytest.mark.parametrize(("num_states", "expected"), [(100, 60), (205, 122), (410, 245), (845, 506), (1, 0)])
def test_feature_count_repeats_the_models_float_arithmetic(num_states: int, expected: int) -> None:
    """The number of 30 Hz features equals the reference's, also if its float arithmetic gives one less."""
    assert num_features_at_30(num_states) == expected


def test_resampling_aligns_both_ends() -> None:
    """A linear ramp stays linear and keeps its first and last values."""
    ramp_SNC = torch.arange(50.0).view(1, 50, 1)
    resampled = resample_50_to_30(ramp_SNC)
    torch.testing.assert_close(resampled[0, :, 0], torch.linspace(0, 49, 30))


def test_frames_beyond_the_speech_are_silent() -> None:
    """Each frame has its feature; frames after the last feature are zeros."""
    features_STC = torch.arange(1.0, 11.0).view(1, 10, 1).expand(25, -1, 2)
    frames_KSC = frame_features(features_STC, 8)
    assert frames_KSC.shape == (8, 25, 2)
    assert frames_KSC[:, 3, 1].tolist() == [1, 3, 5, 7, 9, 10, 0, 0]


def test_one_second_gives_49_states() -> None:
    """State counts follow the convolutions of wav2vec2, down to none for a few samples."""
    assert [num_states_at_50(samples) for samples in (0, 399, 400, 16000, 160000)] == [0, 0, 1, 49, 499]


def test_reference_repeats_once_too_often() -> None:
    """The reference renders one more clip for audio that fills its clips exactly."""
    assert reference_num_repeat(150, 80) == 2
    assert reference_num_repeat(149, 80) == 1


def test_too_short_speech_is_refused() -> None:
    """Audio without a single feature is a permanent error."""
    with pytest.raises(PermanentError, match="1 states"):
        resample_50_to_30(torch.zeros(25, 1, 4))
