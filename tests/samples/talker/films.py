"""Films of speaking people as latents and features on disk: what the transformer learns from.

A film is 8 seconds: latents of 1 + 128 frames, those of a reference picture of the same person, and the features of
each frame. They are made with the audio encoder and the VAE encoder of that time; a changed VAE encoder needs new
films. A second process may make films while the transformer learns from those that are there.
"""

from dataclasses import dataclass
from pathlib import Path

import audio_stage
import clips
import fast_vae
import numpy as np
import speech
import torch
from faces import Person, Pose
from torch import Tensor
from training import averaged_weights

NUM_LATENTS = 33
NUM_FRAMES = 4 * NUM_LATENTS - 3
_SEED = 3


@dataclass(frozen=True)
class Film:
    """One film, as stored in half precision and used in single precision."""

    latents: Tensor  # [16, 33, h, w], mean 0 and deviation 1
    reference: Tensor  # [16, 1, h, w]
    features: Tensor  # [129, 25, 32]
    mouths: Tensor  # [129, 2]: opening and width
    mouth_cells: Tensor  # [h, w]: 1 where the mouth moves
    before: Tensor  # [16, 19, h, w]: grey frames, what precedes a chain


def load_film(path: Path) -> Film:
    """Read a film."""
    content = torch.load(path, weights_only=True, mmap=True)
    return Film(**{name: value.float() for name, value in content.items()})


def film_seed(index: int) -> np.random.Generator:
    """Return the generator of film `index`; those below 0 are for tests."""
    return np.random.default_rng((_SEED, index + 1_000_000))


def draw_film(index: int) -> tuple[clips.Clip, speech.Utterance, np.ndarray]:
    """Return the frames of a film, its speech from the film's start on, and the reference picture.

    Films for tests show the sample's person and an unseen one in turns, the sample's first.
    """
    rng = film_seed(index)
    utterance = speech.draw_utterance(rng, NUM_FRAMES / 16 + 0.2)
    person = clips.draw_person(rng, clips.SAMPLE_SHARE if index >= 0 else float(index % 2))
    clip = clips.draw_clip(rng, person, utterance, 0.0, NUM_FRAMES)
    return clip, utterance, reference_picture(rng, clip.person)


def reference_picture(rng: np.random.Generator, person: Person) -> np.ndarray:
    """Return a picture of the person with the mouth closed, or not quite."""
    opening = float(rng.choice([0.0, 0.0, rng.uniform(0, 0.3)]))
    shift = (float(rng.uniform(-2, 2)), float(rng.uniform(-1, 1)))
    return person.frame(Pose(opening, float(rng.uniform(0.3, 0.7)), 0.0, shift))


class FilmMaker:
    """The encoders of the first two stages, and the scale that gives their latents mean 0 and deviation 1."""

    def __init__(self, folder: Path) -> None:
        self.audio_encoder = audio_stage.load_encoder(averaged_weights(folder / "audio.pt"))
        self.vae = fast_vae.new_vae(torch.Generator().manual_seed(0))
        self.vae.load_state_dict(averaged_weights(folder / "vae.pt"), strict=False)
        self.mean, self.std = latent_scale(self.vae, folder / "latent_scale.pt")
        self._grey: dict[tuple[int, int], Tensor] = {}

    @torch.no_grad()
    def encode(self, frames_THWC: np.ndarray) -> Tensor:
        """Return scaled latents `[16, Z, h, w]`."""
        pixels = torch.tensor(frames_THWC).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
        return ((fast_vae.encode(self.vae, pixels) - self.mean) / self.std)[0]

    def _before(self, height: int, width: int) -> Tensor:
        """Return the latents of the grey frames that precede a chain."""
        if (height, width) not in self._grey:
            self._grey[height, width] = self.encode(np.full((73, height, width, 3), 127.5, np.float32))
        return self._grey[height, width]

    def make(self, index: int) -> dict[str, Tensor]:
        """Return film `index` as it is stored."""
        clip, utterance, reference = draw_film(index)
        times = audio_stage.frame_times(NUM_FRAMES)
        left, top, right, bottom = clip.person.mouth_box()
        cells = torch.zeros(clip.person.height // 8, clip.person.width // 8)
        cells[top // 8 : -(-bottom // 8), left // 8 : -(-right // 8)] = 1
        content = {
            "latents": self.encode(clip.frames),
            "reference": self.encode(reference[None]),
            "features": audio_stage.video_features(self.audio_encoder, utterance.waveform, NUM_FRAMES),
            "mouths": torch.from_numpy(utterance.mouth(times)),
            "mouth_cells": cells,
            "before": self._before(clip.person.height, clip.person.width),
        }
        return {name: value.half().contiguous() for name, value in content.items()}


def latent_scale(vae: object, path: Path) -> tuple[Tensor, Tensor]:
    """Return mean and deviation of each latent channel `[1, 16, 1, 1, 1]`; measured once and kept in `path`."""
    if not path.is_file():
        rng, latents = np.random.default_rng((_SEED, 0)), []
        for _ in range(24):
            person = clips.draw_person(rng, clips.SAMPLE_SHARE)
            clip = clips.draw_clip(rng, person, speech.draw_utterance(rng, 2), 0.3, 9)
            pixels = torch.from_numpy(clip.frames).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
            with torch.no_grad():
                latents.append(fast_vae.encode(vae, pixels).transpose(0, 1).flatten(1))
        values = torch.cat(latents, dim=1)
        torch.save({"mean": values.mean(1), "std": values.std(1)}, path)
    content = torch.load(path, weights_only=True)
    return content["mean"].view(1, -1, 1, 1, 1), content["std"].view(1, -1, 1, 1, 1)


def make_films(folder: Path, count: int, first: int = 0, num_test: int = 6) -> None:
    """Write the films that `folder/films` lacks of `count` from `first` on, and the tests' `num_test` before them."""
    target = folder / "films"
    target.mkdir(parents=True, exist_ok=True)
    maker = FilmMaker(folder)
    for index in [*range(-num_test, 0), *range(first, first + count)]:
        path = target / (f"test-{-index:02}.pt" if index < 0 else f"film-{index:05}.pt")
        if not path.is_file():
            torch.save(maker.make(index), path.with_suffix(".partial"))
            Path(path.with_suffix(".partial")).replace(path)
