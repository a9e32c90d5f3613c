"""Speech to hidden states at 50 Hz with wav2vec2-large-xlsr-53 (spec b.1).

Shapes: P samples, S states (25), T50 samples at 50 Hz, C channels.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import Wav2Vec2Config, Wav2Vec2Model
from transformers.utils import logging

from s2v_tasks.engine.audio_features import num_states_at_50
from s2v_tasks.engine.encoders.audio_windows import JoinedStates, windows_over
from s2v_tasks.engine.loading.weights import assign_weights
from s2v_tasks.errors import ConfigurationError, PermanentError

SAMPLES_PER_SECOND = 16000
NUM_STATES = 25
# The classifier on top is for speech recognition, and the mask embedding for training: neither is used here.
_UNUSED_PREFIX = "lm_head."
_UNUSED_IN_INFERENCE = "masked_spec_embed"


class AudioEncoder:
    """Computes in float32, without gradients; on a GPU too, where convolutions would round what goes in to TF32."""

    def __init__(self, model: Wav2Vec2Model) -> None:
        if model.config.num_hidden_layers + 1 != NUM_STATES:
            raise ConfigurationError(
                f"the audio encoder has {model.config.num_hidden_layers} layers; the transformer reads "
                f"{NUM_STATES - 1} of them: use the wav2vec2 folder that belongs to the snapshot"
            )
        self._model = model

    @classmethod
    def from_folder(cls, path: Path, device: torch.device | str) -> "AudioEncoder":
        """Load a Hugging Face folder (config, safetensors or .bin weights).

        Raises ConfigurationError when weights are missing or do not belong to the model.
        """
        # The library's own load report and progress bar say less than the check below, and they are no log events.
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        model, info = Wav2Vec2Model.from_pretrained(
            path, dtype=torch.float32, local_files_only=True, output_loading_info=True
        )
        wrong = {
            "missing": sorted(set(info["missing_keys"]) - {_UNUSED_IN_INFERENCE}),
            "unexpected": sorted(key for key in info["unexpected_keys"] if not key.startswith(_UNUSED_PREFIX)),
            "of another shape": sorted(str(key) for key in info["mismatched_keys"]),
        }
        if any(wrong.values()):
            raise ConfigurationError(f"the weights in {path} do not fit its config.json: {wrong}; download it again")
        return cls(model.to(device).eval().requires_grad_(False))

    @classmethod
    def from_state_dict(
        cls, state: Mapping[str, Tensor], config: Mapping[str, Any], device: torch.device | str = "cpu"
    ) -> "AudioEncoder":
        """Build on `device` from the values of a config.json and weights with the folder's keys (`wav2vec2.*`)."""
        model = Wav2Vec2Model(Wav2Vec2Config(**config))
        own = {_present_name(key.removeprefix("wav2vec2.")): value for key, value in state.items()}
        assign_weights(
            model,
            {key: value for key, value in own.items() if not key.startswith(_UNUSED_PREFIX)},
            source="the audio encoder",
        )
        return cls(model.to(device))

    @torch.inference_mode()
    def encode(self, waveform_P: NDArray[np.float32]) -> Tensor:
        """Mono speech at 16 kHz to its hidden states, float32 [25, T50, C], on the CPU.

        State 0 is the input of the first layer, 1..23 the outputs of layers 1..23, and 24 the last layer's output
        after the final norm. Speech of more than a minute is encoded in overlapping windows, so that memory grows with
        its length and not with the square. Raises PermanentError when the waveform is not mono float32 of a usable
        length.
        """
        # Over the utterance, also where it is encoded in windows.
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
        # The library's own last hidden state is the one before the final norm, and was the one after it in 4.x.
        states = [*output.hidden_states[: NUM_STATES - 1], output.last_hidden_state]
        return torch.cat(states).cpu()


def _present_name(key: str) -> str:
    """Return the key of a weight in the present library; older files name the weight norm otherwise."""
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
    """Zero mean and unit variance over the whole utterance, as the model was trained."""
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
