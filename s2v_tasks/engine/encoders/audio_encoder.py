"""Speech to hidden states at 50 Hz with wav2vec2-large-xlsr-53 (spec b.1), in overlapping windows over a long sound.

The attention of the encoder covers its whole input, so the states of a window differ slightly from those of the whole
sound, mostly near the ends of the window. States at the ends have weight 0; further in they are cross-faded with the
states of the next window.

Times of windows are in states, 50 per second.

Shapes: P samples, S layers whose states are read (25), T50 or N states at 50 Hz, C channels.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import Wav2Vec2Config, Wav2Vec2Model

from s2v_tasks.engine.audio_features import num_states_at_50
from s2v_tasks.engine.loading.weights import assign_weights
from s2v_tasks.errors import ConfigurationError, PermanentError

# Length of one pass: shorter sounds are encoded exactly, in one window.
WINDOW_STATES = 3000
_MIN_OVERLAP_STATES = 500
# At each inner end; more than the 64 states that the positional convolution reaches.
_UNUSED_STATES = 150
# Samples (16 kHz) per state, and between the starts of two states.
_SAMPLES_PER_STATE, _SAMPLES_BETWEEN_STATES = 400, 320
NUM_STATES = 25
# The classifier on top is for speech recognition, and the mask embedding for training: neither is used here.
_UNUSED = ("lm_head.", "masked_spec_embed")


@dataclass(frozen=True)
class Window:
    """States `start` to `end` of the `num_states` of the whole sound."""

    start: int
    end: int
    num_states: int

    @property
    def samples(self) -> slice:
        """Return the samples from which these states are computed."""
        first = self.start * _SAMPLES_BETWEEN_STATES
        return slice(first, first + (self.end - self.start - 1) * _SAMPLES_BETWEEN_STATES + _SAMPLES_PER_STATE)

    def weights(self) -> Tensor:
        """Return the weight of each state of the window, float32 `[end - start]`, relative to other windows."""
        states = torch.arange(self.start, self.end)
        distances = torch.full((len(states),), WINDOW_STATES)
        if self.start > 0:
            distances = torch.minimum(distances, states - self.start)
        if self.end < self.num_states:
            distances = torch.minimum(distances, self.end - 1 - states)
        return (distances - _UNUSED_STATES).clamp(0, _MIN_OVERLAP_STATES - 2 * _UNUSED_STATES).float()


def windows_over(num_samples: int) -> list[Window]:
    """Return windows of equal length, evenly spread over the states of a sound; one window up to WINDOW_STATES."""
    num_states = num_states_at_50(num_samples)
    if num_states <= WINDOW_STATES:
        return [Window(0, num_states, num_states)]
    last_start = num_states - WINDOW_STATES
    num_steps = ceil(last_start / (WINDOW_STATES - _MIN_OVERLAP_STATES))
    starts = (last_start * step // num_steps for step in range(num_steps + 1))
    return [Window(start, start + WINDOW_STATES, num_states) for start in starts]


class JoinedStates:
    """The states of a sound, joined from the states of its windows."""

    def __init__(self) -> None:
        self._sum_SNC: Tensor | None = None
        self._weights_N = torch.empty(0)

    def add(self, window: Window, states_SNC: Tensor) -> None:
        """Take the states of a window, `[S, end - start, C]`."""
        if self._sum_SNC is None:
            self._sum_SNC = states_SNC.new_zeros(states_SNC.shape[0], window.num_states, states_SNC.shape[2])
            self._weights_N = states_SNC.new_zeros(window.num_states)
        weights_N = window.weights().to(states_SNC.device)
        self._sum_SNC[:, window.start : window.end] += states_SNC * weights_N[:, None]
        self._weights_N[window.start : window.end] += weights_N

    def result(self) -> Tensor:
        """Return the joined states, `[S, num_states, C]`."""
        if self._sum_SNC is None:
            raise ValueError("no window of states was added before result()")
        return self._sum_SNC.div_(self._weights_N[:, None])


class AudioEncoder:
    """Computes in float32 without gradients; on a GPU without TF32, which would round the inputs of convolutions."""

    def __init__(self, model: Wav2Vec2Model) -> None:
        if model.config.num_hidden_layers + 1 != NUM_STATES:
            raise ConfigurationError(
                f"the audio encoder has {model.config.num_hidden_layers} layers; the transformer reads "
                f"{NUM_STATES - 1} of them: use the wav2vec2 folder that belongs to the snapshot"
            )
        self._model = model

    @classmethod
    def from_state_dict(
        cls, state: Mapping[str, Tensor], config: Mapping[str, Any], device: torch.device | str = "cpu"
    ) -> "AudioEncoder":
        """Build on `device` from the values of a config.json and weights with the folder's keys (`wav2vec2.*`).

        Raises ConfigurationError if weights are missing or do not belong to the model.
        """
        without_masks = {**config, "mask_time_prob": 0.0, "mask_feature_prob": 0.0}
        with torch.device("meta"):
            model = Wav2Vec2Model(Wav2Vec2Config(**without_masks))
        own = {_present_name(key.removeprefix("wav2vec2.")): value.float() for key, value in state.items()}
        used = {key: value for key, value in own.items() if not key.startswith(_UNUSED)}
        assign_weights(model, used, source="the audio encoder")
        return cls(model.to(device))

    @torch.inference_mode()
    def encode(self, waveform_P: NDArray[np.float32]) -> Tensor:
        """Encode mono speech at 16 kHz to its hidden states, float32 [25, T50, C], on the CPU.

        State 0 is the input of the first layer, 1..23 the outputs of layers 1..23, and 24 the last layer's output after
        the final norm. Speech of more than a minute is encoded in overlapping windows, so that memory grows linearly
        with its length instead of quadratically. Raises PermanentError when the waveform is not mono float32 of a
        usable length.
        """
        # Over the whole utterance, also if it is encoded in windows.
        values = torch.from_numpy(normalise(waveform_P))
        windows = windows_over(len(values))
        if len(windows) == 1:
            return self._encode(values)
        joined = JoinedStates()
        for window in windows:
            joined.add(window, self._encode(values[window.samples]))
        return joined.result()

    def _encode(self, values: Tensor) -> Tensor:
        with _float32_convolutions():
            output = self._model(values[None].to(self._model.device), output_hidden_states=True)
        # The last hidden state of the library is taken before the final norm (in 4.x: after it).
        states = [*output.hidden_states[: NUM_STATES - 1], output.last_hidden_state]
        return torch.cat(states).cpu()


def _present_name(key: str) -> str:
    """Return the key of a weight in the current library; older files have another name for the weight norm."""
    norm = "encoder.pos_conv_embed.conv."
    names = {f"{norm}weight_g": "original0", f"{norm}weight_v": "original1"}
    return f"{norm}parametrizations.weight.{names[key]}" if key in names else key


@contextmanager
def _float32_convolutions() -> Iterator[None]:
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def normalise(waveform_P: NDArray[np.float32]) -> NDArray[np.float32]:
    """Shift and scale the whole utterance to mean 0 and variance 1, as the model was trained."""
    if waveform_P.ndim != 1 or waveform_P.dtype != np.float32:
        raise PermanentError(
            f"speech of shape {list(waveform_P.shape)} and type {waveform_P.dtype}: convert it to mono float32"
        )
    if num_states_at_50(waveform_P.size) < 1 or not np.isfinite(waveform_P).all():
        raise PermanentError(
            f"speech of {waveform_P.size} samples; at least 400 samples (0.025 s at 16 kHz), all finite, are needed"
        )
    normalised: NDArray[np.float32] = (waveform_P - waveform_P.mean()) / np.sqrt(waveform_P.var() + 1e-7)
    return normalised.astype(np.float32, copy=False)
