"""Stage 3: the transformer learns the velocity from noise to the latents of a speaking person.

Flow matching on windows of films: the noise levels are those of few solver steps with shift 3. The region of the mouth
is weighted. Some clips have no history, as the first of a chain, some a history that begins in grey; some have no
sound, for guidance. A head on the sound tokens predicts the mouth of each frame, so that the tokens carry it early.

Measures of the stage: the error of latents in four steps, and the correlation of the mouth opening, measured in decoded
frames, with the drawn one and with that of other speech. The stop rule proper needs the rendered MP4: see `measure.py`.
"""

from dataclasses import dataclass
from pathlib import Path

import clips
import fast_vae
import numpy as np
import torch
import trainable_transformer
from films import NUM_LATENTS, Film, draw_film, latent_scale, load_film
from torch import Tensor, nn
from trainable_transformer import Scene, SoundHead, sound_tokens, velocity
from training import Measures, averaged_weights, correlation

from s2v_tasks.engine.models.layers import MOTION_LATENTS
from s2v_tasks.engine.schedulers import make_scheduler

_SEED = 4
_BATCH, _WINDOW = 4, 4  # clips and latent frames of a step
_LONG_WINDOW = 20  # of a single clip, in one of ten steps
_LONGEST_CLIP = 28
_MOUTH_WEIGHT = 10.0
_SOUND_WEIGHT = 1.0
_SHIFT = 3.0
_LEAST_CORRELATION, _MOST_WRONG = 0.45, 0.25


@dataclass(frozen=True)
class Sample:
    """One window: the clip's features up to its end, its clean latents and what they are made from."""

    latents: Tensor
    scene: Scene
    mouths: Tensor
    weights: Tensor


class TransformerStage:
    """The transformer, a head on its sound tokens, and the films in a folder."""

    name = "transformer"
    least_steps = 10**9  # the stop rule is judged outside

    def __init__(self, folder: Path, *, config: dict[str, object] = trainable_transformer.CONFIG) -> None:
        self.net = trainable_transformer.new_transformer(torch.Generator().manual_seed(0), config)
        self.head = SoundHead(self.net.config.dim)
        self.module = nn.ModuleDict({"net": self.net, "head": self.head})
        matrices, others = [], []
        for name, value in self.module.named_parameters():
            if value.requires_grad:
                hidden = (value.ndim == 2 and "blocks." in name) or (".injector." in name and value.ndim == 2)
                (matrices if hidden else others).append(value)
        self.optimizers = [
            torch.optim.Muon(matrices, lr=2e-3, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, lr=1.5e-3, betas=(0.9, 0.98), weight_decay=0.0),
        ]
        self._folder = folder
        self._films: dict[Path, Film] = {}
        self._refresh()

    def _refresh(self) -> None:
        for path in sorted((self._folder / "films").glob("film-*.pt")):
            if path not in self._films:
                self._films[path] = load_film(path)
        sizes: dict[torch.Size, list[Film]] = {}
        for film in self._films.values():
            sizes.setdefault(film.latents.shape, []).append(film)
        self._by_size = list(sizes.values())

    def rate(self, step: int) -> float:
        """Warm up over 100 steps, then fall with the square root of the step."""
        return min((step + 1) / 100, (2000 / max(2000, step)) ** 0.5)

    def loss(self, step: int) -> Tensor:
        """Return the weighted error of the velocity plus that of the mouths that the sound tokens state."""
        rng = np.random.default_rng((_SEED, step))
        if step % 100 == 0:
            self._refresh()
        sample = self._sample(rng)
        noise = torch.from_numpy(rng.standard_normal(sample.latents.shape, dtype=np.float32))
        sigma = torch.from_numpy(_sigmas(rng, len(noise)))
        share = sigma.view(-1, 1, 1, 1, 1)
        with torch.autocast("cpu", torch.bfloat16):
            predicted, _ = velocity(self.net, (1 - share) * sample.latents + share * noise, sigma, sample.scene)
        error = (predicted - (noise - sample.latents)).square()
        return (error * sample.weights).mean() / sample.weights.mean() + _SOUND_WEIGHT * self._sound_loss(rng)

    def _sound_loss(self, rng: np.random.Generator) -> Tensor:
        """Return the error of the mouths of eight other clips: sound alone costs little."""
        films = list(self._films.values())
        features, mouths = [], []
        for _ in range(8):
            film, first = films[rng.integers(len(films))], int(rng.integers(0, 49))
            features.append(film.features[first : first + 80])
            mouths.append(film.mouths[first : first + 80])
        local, _ = sound_tokens(self.net, torch.stack(features))
        return (self.head(local) - torch.stack(mouths)).square().mean()

    def _sample(self, rng: np.random.Generator) -> Sample:
        """Return a batch of windows of clips, all at the same place of theirs."""
        sizes = np.array([len(films) for films in self._by_size])
        films = self._by_size[rng.choice(len(sizes), p=sizes / sizes.sum())]
        count, window = (1, _LONG_WINDOW) if rng.random() < 0.1 else (_BATCH, _WINDOW)
        first = 0 if rng.random() < 0.4 else int(rng.integers(0, _LONGEST_CLIP - window + 1))
        has_motion, mute = rng.random() < 0.65, rng.random() < 0.08
        samples = []
        for _ in range(count):
            film = films[rng.integers(len(films))]
            start = int(rng.integers(1, NUM_LATENTS - first - window))  # the clip's first latent
            samples.append(_window(film, start, first, window, rng))
        latents, references, motions, features, mouths, weights = (
            torch.stack(parts) for parts in zip(*samples, strict=True)
        )
        scene = Scene(references, motions if has_motion else None, features * (not mute), first)
        return Sample(latents, scene, mouths, weights)

    @torch.no_grad()
    def evaluate(self) -> Measures:
        """Return measures of unseen speech of the sample's person and of unseen people, each sampled in four steps."""
        vae = fast_vae.new_vae(torch.Generator().manual_seed(0))
        newest = "decoder.pt" if (self._folder / "decoder.pt").is_file() else "vae.pt"
        vae.load_state_dict(averaged_weights(self._folder / newest), strict=False)
        mean, std = latent_scale(vae, self._folder / "latent_scale.pt")
        errors, mouth_errors, measured, drawn = [], [], [], []
        for number, path in enumerate(sorted((self._folder / "films").glob("test-*.pt"))[:4]):
            film = load_film(path)
            truth, scene = film.latents[None, :, 1:13], Scene(film.reference[None], None, film.features[None, 1:49])
            made = sample(self.net, scene, truth.shape, seed=number)
            error = (made - truth).square().mean((0, 1, 2))
            errors.append(float(error.mean()))
            mouth_errors.append(float((error * film.mouth_cells).sum() / film.mouth_cells.sum()))
            pixels = fast_vae.decode(vae, torch.cat([film.reference[None], made], dim=2) * std + mean)[0, :, 1:]
            frames = ((pixels.clamp(-1, 1).permute(1, 2, 3, 0) + 1) * 127.5).round().to(torch.uint8).numpy()
            clip = draw_film(-int(path.stem[-2:]))[0]
            indices = range(3, 48, 2)
            measured.append([clips.measured_opening(clip.person, clip.poses[1 + k], frames[k]) for k in indices])
            drawn.append([clip.poses[1 + k].opening for k in indices])
        right = [correlation(a, b) for a, b in zip(measured, drawn, strict=True)]
        wrong = [correlation(a, b) for i, a in enumerate(measured) for j, b in enumerate(drawn) if i != j]
        local, _ = sound_tokens(self.net, film.features[None, 1:])
        stated = self.head(local)[0, :, 0]
        return {
            "latent_error": float(np.mean(errors)),
            "mouth_error": float(np.mean(mouth_errors)),
            "stated_correlation": correlation(stated, film.mouths[1:, 0]),
            "sample_opening_correlation": float(np.mean(right[::2])),  # see `draw_film`
            "opening_correlation": float(np.mean(right[1::2])),
            "wrong_correlation": float(np.mean(wrong)),
        }

    def reached(self, measures: Measures) -> bool:
        """Return true if the openings follow the right speech and no other."""
        right, wrong = measures["opening_correlation"], measures["wrong_correlation"]
        return right > _LEAST_CORRELATION and wrong < _MOST_WRONG


def _window(film: Film, start: int, first: int, window: int, rng: np.random.Generator) -> tuple[Tensor, ...]:
    """Return latents, reference, history, features, mouths and weights of a window of the clip from `start` on."""
    begin = start + first
    grey = film.before[:, : max(0, MOTION_LATENTS - start)]
    known = film.latents[:, max(0, start - MOTION_LATENTS) : start]
    history = torch.cat([grey, known], dim=1)
    # What the model itself made is not quite clean.
    noise = torch.from_numpy(rng.standard_normal(history.shape, dtype=np.float32)) * float(rng.uniform(0, 0.25))
    frames = slice(4 * start - 3, 4 * (begin + window) - 3)
    weights = 1 + (_MOUTH_WEIGHT - 1) * film.mouth_cells
    return (
        film.latents[:, begin : begin + window],
        film.reference,
        history + noise,
        film.features[frames],
        film.mouths[frames],
        weights[None, None],
    )


def _sigmas(rng: np.random.Generator, count: int) -> np.ndarray:
    share = rng.uniform(0.1, 1, count)
    return (_SHIFT * share / (1 + (_SHIFT - 1) * share)).astype(np.float32)


@torch.no_grad()
def sample(net: nn.Module, scene: Scene, shape: torch.Size, *, seed: int, num_steps: int = 4) -> Tensor:
    """Return latents that the engine's solver makes from noise."""
    scheduler = make_scheduler("unipc", num_steps=num_steps, shift=_SHIFT, device="cpu")
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    for timestep in scheduler.timesteps:
        predicted, _ = velocity(net, latents, timestep[None] / 1000, scene)
        latents = scheduler.step(predicted, timestep, latents, return_dict=False)[0]
    return latents
