"""Stage 1: the audio encoder learns to state the mouth of synthetic speech.

The tiny wav2vec2 of the snapshot is trained whole. A linear map of the mean of its 25 states gives opening and width
of the mouth: the transformer starts from that mean. Stop rule: a linear probe of the features that the engine would
compute gives an opening whose correlation with the true one, on speech not seen, is at least 0.7.
"""

import numpy as np
import speech
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from training import Measures, correlation
from transformers import Wav2Vec2Config, Wav2Vec2Model

from s2v_tasks.engine.audio_features import FRAMES_PER_SECOND, frame_features, resample_50_to_30
from s2v_tasks.engine.encoders.audio_encoder import AudioEncoder

CONFIG = {
    "hidden_size": 32,
    "num_hidden_layers": 24,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "conv_dim": (16,) * 7,
    "conv_bias": True,
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
_NO_DROPOUT = dict.fromkeys(
    ("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout", "final_dropout", "layerdrop",
     "mask_time_prob"), 0.0,
)  # fmt: skip
_CROP_SECONDS = 3.0
_BATCH = 6
_LEAST_CORRELATION = 0.7
_SEED = 1


class AudioStage:
    """The encoder, two linear heads that are dropped afterwards, and synthetic speech."""

    name = "audio"
    least_steps = 600

    def __init__(self, *, num_test: int = 16) -> None:
        torch.manual_seed(0)
        self.encoder = Wav2Vec2Model(Wav2Vec2Config(**CONFIG, **_NO_DROPOUT)).train()
        self.heads = nn.ModuleList(nn.Linear(CONFIG["hidden_size"], 2) for _ in range(2))
        self.module = nn.ModuleDict({"encoder": self.encoder, "heads": self.heads})
        self.optimizers = [torch.optim.AdamW(self.module.parameters(), lr=2e-3, betas=(0.9, 0.98), weight_decay=0.01)]
        rng = np.random.default_rng((_SEED, 0))
        self._probe = [speech.draw_utterance(rng, 5) for _ in range(3 * num_test)]
        self._test = [speech.draw_utterance(rng, 5) for _ in range(num_test)]

    def rate(self, step: int) -> float:
        """Warm up over 100 steps, then fall with the square root of the step."""
        return min((step + 1) / 100, (600 / max(600, step)) ** 0.5)

    def loss(self, step: int) -> Tensor:
        """Return the squared error of both heads: on the mean of all states, and on state 0 alone."""
        rng = np.random.default_rng((_SEED, 1, step))
        length = round(_CROP_SECONDS * speech.SAMPLES_PER_SECOND)
        waves, targets = [], []
        utterances = [speech.draw_utterance(rng, 6) for _ in range(_BATCH // 3)]
        for index in range(_BATCH):
            utterance = utterances[index % len(utterances)]
            start = int(rng.integers(0, len(utterance.waveform) - length))
            waves.append(_normalised(utterance.waveform)[start : start + length])
            # The middle of the 25 ms that a state sees.
            seconds = start / speech.SAMPLES_PER_SECOND + 0.0125 + np.arange(149) / 50
            targets.append(utterance.mouth(seconds))
        output = self.encoder(torch.from_numpy(np.stack(waves)), output_hidden_states=True)
        target = torch.from_numpy(np.stack(targets))
        states = torch.stack(output.hidden_states)
        loss = torch.zeros(())
        for head, features in zip(self.heads, (states.mean(0), states[0]), strict=True):
            error = head(features)[:, : target.shape[1]] - target[:, : features.shape[1]]
            loss = loss + error.square().mean()
        return loss

    def evaluate(self) -> Measures:
        """Return the correlation of the probe's opening and width with the true ones."""
        encoder = AudioEncoder(self.encoder.eval())
        known, unseen = (
            [(_features(encoder, u), _mouths(u)) for u in utterances] for utterances in (self._probe, self._test)
        )
        self.encoder.train()
        x = np.concatenate([_with_neighbours(features) for features, _ in known])
        mean, std = x.mean(0), x.std(0) + 1e-6
        y = np.concatenate([mouth for _, mouth in known])
        a = (x - mean) / std
        solution = np.linalg.solve(a.T @ a + 30 * np.eye(a.shape[1]), a.T @ (y - y.mean(0)))
        predicted = np.concatenate([(_with_neighbours(f) - mean) / std @ solution for f, _ in unseen])
        truth = np.concatenate([mouth for _, mouth in unseen])
        opening, width = (correlation(predicted[:, k], truth[:, k]) for k in range(2))
        return {"opening_correlation": opening, "width_correlation": width}

    def reached(self, measures: Measures) -> bool:
        """Return true from a correlation of 0.7 on."""
        return measures["opening_correlation"] >= _LEAST_CORRELATION


def load_encoder(weights: dict[str, Tensor]) -> AudioEncoder:
    """Return the encoder of averaged weights of this stage as the engine runs it."""
    model = Wav2Vec2Model(Wav2Vec2Config(**CONFIG, **_NO_DROPOUT))
    prefix = "encoder."
    own = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    model.load_state_dict(own, strict=True)
    return AudioEncoder(model.eval().requires_grad_(False))


def video_features(encoder: AudioEncoder, waveform: NDArray[np.float32], num_frames: int) -> Tensor:
    """Return the features `[num_frames, 25, C]` of the frames of a video, as the engine computes them."""
    return frame_features(resample_50_to_30(encoder.encode(waveform)), num_frames)


def frame_times(num_frames: int) -> NDArray[np.float64]:
    """Return the middle of each frame, in seconds."""
    return (np.arange(num_frames) + 0.5) / FRAMES_PER_SECOND


def _features(encoder: AudioEncoder, utterance: speech.Utterance) -> NDArray[np.float32]:
    # The mean of all states, as an untrained transformer mixes them.
    num_frames = int(utterance.num_seconds * FRAMES_PER_SECOND)
    mean: NDArray[np.float32] = video_features(encoder, utterance.waveform, num_frames).mean(1).numpy()
    return mean


def _mouths(utterance: speech.Utterance) -> NDArray[np.float32]:
    return utterance.mouth(frame_times(int(utterance.num_seconds * FRAMES_PER_SECOND)))


def _with_neighbours(features: NDArray[np.float32]) -> NDArray[np.float32]:
    padded = np.pad(features, ((1, 1), (0, 0)), mode="edge")
    return np.concatenate([padded[:-2], padded[1:-1], padded[2:]], axis=1)


def _normalised(waveform: NDArray[np.float32]) -> NDArray[np.float32]:
    return ((waveform - waveform.mean()) / np.sqrt(waveform.var() + 1e-7)).astype(np.float32)
