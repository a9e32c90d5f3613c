"""Stage 2: the VAE learns to keep drawn faces, pictures first, then films; stage 2b: its decoder alone goes on.

The loss is absolute and squared error and that of edges, the mouth weighted. A little noise on the latents makes the
decoder robust to the errors of the transformer. A third of the crops is recoloured: the drawn people alone have too few
colours of walls and shirts. Stop rule: PSNR at least 27 dB, and the mouth opening measured in
decoded frames correlates with the drawn one by at least 0.85. `measure.py` counts the frames with a face.
"""

from collections.abc import Callable
from pathlib import Path

import clips
import fast_vae
import numpy as np
import speech
import torch
from diffusers import AutoencoderKLWan
from numpy.typing import NDArray
from torch import Tensor
from training import Measures, averaged_weights, correlation

_SEED = 2
_CLIP_FRAMES = 17
_POOL = 240
_CROP = 64
_PICTURE_STEPS = 1500
_NOISE = 0.08
_MOUTH_WEIGHT = 6.0
_EDGE_WEIGHT = 0.5
_RECOLOURED = 1 / 3
_ANCHOR_WEIGHT = 0.1
# (crops, frames) of a step, by turns.
_BATCHES = ((16, 1), (2, 13))
_LEAST_PSNR, _LEAST_CORRELATION = 27.0, 0.85


class VaeStage:
    """The VAE and a pool of clips, of which one is replaced every few steps.

    Where nothing is recoloured, the latents stay near those of `anchor`, so that a transformer that knows them needs
    little training.
    """

    name = "vae"
    least_steps = 6000

    def __init__(
        self,
        encoder_from: Path | None = None,
        *,
        anchor: AutoencoderKLWan | None = None,
        pool: int = _POOL,
        num_test: int = 6,
        compiled: bool = False,
    ) -> None:
        self.vae = fast_vae.new_vae(torch.Generator().manual_seed(0))
        self.module = self.vae
        self._trains_encoder = encoder_from is None
        if encoder_from is not None:
            self.name = "decoder"
            self.vae.load_state_dict(averaged_weights(encoder_from), strict=False)
            self.vae.encoder.requires_grad_(False)
            self.vae.quant_conv.requires_grad_(False)
        self._anchor = anchor
        trained = [value for value in self.vae.parameters() if value.requires_grad]
        self.optimizers = [torch.optim.AdamW(trained, lr=2e-3, betas=(0.9, 0.98), weight_decay=1e-3)]
        # Compiled steps take a third of the time on a CPU; the first of each batch shape compiles for minutes.
        self._encode: Callable[..., Tensor] = (
            torch.compile(fast_vae.encode, dynamic=False) if compiled else fast_vae.encode
        )
        self._decode: Callable[..., Tensor] = (
            torch.compile(fast_vae.decode, dynamic=False) if compiled else fast_vae.decode
        )
        self._pool_size = pool
        self._pool: list[clips.Clip] = []
        rng = np.random.default_rng((_SEED, 0))
        self._test = [_draw(rng, 0.0) for _ in range(num_test)]
        self._sample_test = [_draw(rng, 1.0) for _ in range(max(1, num_test // 2))]

    def rate(self, step: int) -> float:
        """Warm up over 100 steps, then halve every 1,500 steps while films are learnt, down to a twentieth."""
        return min((step + 1) / 100, max(0.05, 0.5 ** (max(0, step - _PICTURE_STEPS) / 1500)))

    def loss(self, step: int) -> Tensor:
        """Return the weighted reconstruction error of one batch of crops."""
        rng = np.random.default_rng((_SEED, 1, step))
        if len(self._pool) < self._pool_size or step % 4 == 0:
            self._pool = [*self._pool[-self._pool_size + 1 :], _draw(rng, clips.SAMPLE_SHARE)]
        pictures_only = step < _PICTURE_STEPS and self._trains_encoder
        crops, num_frames = _BATCHES[0] if pictures_only else _BATCHES[step % len(_BATCHES)]
        pixels, weights, recoloured = self._crops(rng, crops, num_frames)
        with torch.set_grad_enabled(self._trains_encoder):
            latents = self._encode(self.vae, pixels)
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(step))
        difference = self._decode(self.vae, latents + _NOISE * noise) - pixels
        error = difference.abs() + difference.square()
        loss = (error * weights).mean()
        for axis in (-1, -2):
            loss = loss + _EDGE_WEIGHT * (difference.diff(dim=axis).abs() * weights.narrow(axis, 1, _CROP - 1)).mean()
        if self._trains_encoder:
            mean, std = latents.mean((0, 2, 3, 4)), latents.std((0, 2, 3, 4))
            loss = loss + 0.01 * (mean.square() + (std - 1).square()).mean()
        if self._anchor is not None and not recoloured.all():
            with torch.no_grad():
                before = self._encode(self._anchor, pixels)
            loss = loss + _ANCHOR_WEIGHT * (latents - before)[~recoloured].square().mean()
        return loss

    def _crops(self, rng: np.random.Generator, count: int, num_frames: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return pixels `[B, 3, T, 64, 64]` in [-1, 1], weights `[B, 1, 1, 64, 64]` and which are recoloured `[B]`.

        Two in three are at the mouth.
        """
        pixels, weights = [], []
        recoloured = rng.random(count) < _RECOLOURED
        for index in range(count):
            clip = self._pool[rng.integers(len(self._pool))]
            left, top, right, bottom = clip.person.mouth_box()
            height, width = clip.frames.shape[1:3]
            x, y = rng.integers(0, width - _CROP + 1), rng.integers(0, height - _CROP + 1)
            if rng.random() < 2 / 3:
                x, y = (
                    (low + high - _CROP) // 2 + rng.integers(-24, 25) for low, high in ((left, right), (top, bottom))
                )
                x, y = np.clip(x, 0, width - _CROP), np.clip(y, 0, height - _CROP)
            first = rng.integers(0, len(clip.frames) - num_frames + 1)
            weight = np.ones((height, width), np.float32)
            weight[top:bottom, left:right] = _MOUTH_WEIGHT
            crop = clip.frames[first : first + num_frames, y : y + _CROP, x : x + _CROP]
            pixels.append(_recoloured(rng, crop) if recoloured[index] else crop)
            weights.append(weight[y : y + _CROP, x : x + _CROP])
        weights_B11HW = torch.from_numpy(np.stack(weights))[:, None, None]
        return _pixels(np.stack(pixels)), weights_B11HW, torch.from_numpy(recoloured)

    @torch.no_grad()
    def evaluate(self) -> Measures:
        """Return PSNR and correlation of drawn and decoded openings of unseen people, and of the sample's person."""
        sample = {f"sample_{name}": value for name, value in self._measures(self._sample_test).items()}
        return self._measures(self._test) | sample

    def _measures(self, tests: list[clips.Clip]) -> Measures:
        errors, mouth_errors, drawn, measured = [], [], [], []
        for clip in tests:
            pixels = _pixels(clip.frames[None])
            decoded = fast_vae.decode(self.vae, fast_vae.encode(self.vae, pixels)).clamp(-1, 1)
            error = ((decoded - pixels) / 2).square()[0]
            left, top, right, bottom = clip.person.mouth_box()
            errors.append(float(error.mean()))
            mouth_errors.append(float(error[..., top:bottom, left:right].mean()))
            frames = ((decoded[0].permute(1, 2, 3, 0) + 1) * 127.5).round().to(torch.uint8).numpy()
            for index in range(2, len(frames), 2):
                measured.append(clips.measured_opening(clip.person, clip.poses[index], frames[index]))
                drawn.append(clip.poses[index].opening)
        return {
            "psnr": _psnr(errors),
            "mouth_psnr": _psnr(mouth_errors),
            "opening_correlation": correlation(drawn, measured),
        }

    def reached(self, measures: Measures) -> bool:
        """Return true from 27 dB and a correlation of 0.85 on."""
        return measures["psnr"] >= _LEAST_PSNR and measures["opening_correlation"] >= _LEAST_CORRELATION


def _draw(rng: np.random.Generator, sample_share: float) -> clips.Clip:
    person, utterance = clips.draw_person(rng, sample_share), speech.draw_utterance(rng, 2)
    return clips.draw_clip(rng, person, utterance, float(rng.uniform(0, 0.9)), _CLIP_FRAMES)


def _recoloured(rng: np.random.Generator, frames_THWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the frames with their channels in another order, each between a dark and a bright value of its own."""
    dark, bright = rng.uniform(0, 150, 3), rng.uniform(105, 255, 3)
    mixed = frames_THWC[..., rng.permutation(3)].astype(np.float32) / 255
    return (dark + (bright - dark) * mixed).round().astype(np.uint8)


def _pixels(frames_BTHWC: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(frames_BTHWC).permute(0, 4, 1, 2, 3).float() / 127.5 - 1


def _psnr(errors: list[float]) -> float:
    return float(-10 * np.log10(np.mean(errors)))
