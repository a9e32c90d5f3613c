"""From wav2vec2 states at 50 Hz to one feature matrix per video frame at 16 fps (spec b.2, b.3).

Shapes: S states (25), T50 / T30 samples at 50 / 30 Hz, C channels, K video frames.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from s2v_tasks.errors import PermanentError

FRAMES_PER_SECOND = 16
# The rate of the features in the training of the model; it differs from the rate of the video.
FEATURES_PER_SECOND = 30


# Kernel and stride of the convolutions that turn 16 kHz samples into wav2vec2 states.
_CONVOLUTIONS = ((10, 5), (3, 2), (3, 2), (3, 2), (3, 2), (2, 2), (2, 2))


def num_states_at_50(num_samples: int) -> int:
    """Return the number of wav2vec2 states for samples at 16 kHz; 0 if there are too few samples."""
    length = num_samples
    for kernel, stride in _CONVOLUTIONS:
        length = (length - kernel) // stride + 1
    return max(0, length)


def num_features_at_30(num_states_at_50: int) -> int:
    """Return the number of 30 Hz features for T50 states.

    The order of the float operations is part of the model: for some lengths (205, 410, ...) the result is one below 0.6
    * T50.
    """
    return int(num_states_at_50 / 50.0 * FEATURES_PER_SECOND)


def resample_50_to_30(states_SNC: Tensor) -> Tensor:
    """Resample [S, T50, C] to [S, T30, C], linearly, first and last samples aligned.

    Raises PermanentError if the audio is too short for one feature.
    """
    num_states = states_SNC.shape[1]
    num_features = num_features_at_30(num_states)
    if num_features < 1:
        raise PermanentError(f"the audio gives {num_states} states at 50 Hz; at least 2 (0.05 s) are needed")
    resampled_SCT = F.interpolate(states_SNC.transpose(1, 2), size=num_features, align_corners=True, mode="linear")
    return resampled_SCT.transpose(1, 2)


def feature_indices(num_frames: int) -> Tensor:
    """Return the 30 Hz feature of each video frame: round_half_even(frame * 30 / 16), int64 [K]."""
    # 30 / 16 = 1.875 is exact in binary and torch.round rounds halves to even.
    frames = torch.arange(num_frames, dtype=torch.float64)
    return torch.round(frames * (FEATURES_PER_SECOND / FRAMES_PER_SECOND)).long()


def frame_features(features30_STC: Tensor, num_frames: int) -> Tensor:
    """Return the feature of each of `num_frames` video frames, [K, S, C]; zeros for frames beyond the audio."""
    num_states, num_features, num_channels = features30_STC.shape
    indices = feature_indices(num_frames)
    indices = indices[indices < num_features]
    result_KSC = features30_STC.new_zeros(num_frames, num_states, num_channels)
    result_KSC[: len(indices)] = features30_STC[:, indices.to(features30_STC.device)].transpose(0, 1)
    return result_KSC


def reference_num_repeat(num_features: int, infer_frames: int) -> int:
    """Return the number of clips of the reference for T30 features: one too many if the audio fills them exactly."""
    return int(num_features / (infer_frames * (FEATURES_PER_SECOND / FRAMES_PER_SECOND))) + 1
