"""Drawn people whose mouth says the speeches of tests/samples/speeches, with faults planted on demand."""

import json
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile
from PIL import Image, ImageDraw, ImageFilter

SPEECHES = Path(__file__).parents[2] / "samples" / "speeches"
SAMPLE_RATE, FPS = 16000, 16
Picture = npt.NDArray[np.uint8]
_SUPERSAMPLING = 2


@cache
def speech(name: str) -> npt.NDArray[np.float32]:
    """Return a speech `[n]` at 16 kHz."""
    samples, _ = soundfile.read(SPEECHES / f"{name}.flac", dtype="float32")
    return np.asarray(samples)


@cache
def openings(name: str) -> npt.NDArray[np.float64]:
    """Return the mouth opening 0..1 in each frame of a speech."""
    return np.array(json.loads((SPEECHES / "mouths.json").read_text())[name]["opening"])


@dataclass(frozen=True)
class Person:
    """Looks of a drawn person, from a seed."""

    seed: int
    width: int = 192
    height: int = 240

    def frames(self, mouth: npt.NDArray[np.float64], *, start_frame: int = 0) -> list[Picture]:
        """Return a frame for each mouth opening; the head sways with the time of the frame."""
        return [self.draw(float(opening), (start_frame + index) / FPS) for index, opening in enumerate(mouth)]

    def draw(self, opening: float, seconds: float) -> Picture:
        """Return one picture u8 RGB `[H,W,3]`."""
        rng = np.random.default_rng(self.seed)
        scale = _SUPERSAMPLING * self.width / 192
        skin = np.array([236, 190, 160]) * rng.uniform(0.55, 1.05)
        hair = tuple(int(v) for v in np.array([70, 48, 34]) * rng.uniform(0.4, 2.2))
        wall = tuple(int(v) for v in rng.uniform(60, 220, 3))
        shirt = tuple(int(v) for v in rng.uniform(30, 210, 3))
        rate, phase = rng.uniform(0.7, 1.5), rng.uniform(0, 6)
        long = rng.uniform(0.95, 1.1)
        image = Image.new("RGB", (self.width * _SUPERSAMPLING, self.height * _SUPERSAMPLING), wall)
        pen = ImageDraw.Draw(image)
        x0 = 96 + 1.5 * math.sin(rate * seconds + phase)
        y0 = 112 + 1.0 * math.cos(1.3 * rate * seconds + phase)

        def oval(x: float, y: float, a: float, b: float, colour: object) -> None:
            box = [(x0 + x - a) * scale, (y0 + y - b) * scale, (x0 + x + a) * scale, (y0 + y + b) * scale]
            pen.ellipse(box, fill=colour)  # type: ignore[arg-type]

        tone = tuple(int(v) for v in np.clip(skin, 0, 255))
        dark = tuple(int(v * 0.72) for v in tone)
        lips = tuple(int(v) for v in np.array(tone) * (0.82, 0.46, 0.48))
        oval(0, 128, 84, 62, shirt)
        oval(0, 66, 22, 30, dark)
        oval(0, -12, 55, 68 * long, hair)
        oval(0, 0, 48, 62 * long, tone)
        oval(0, -58 * long, 42, 18, hair)
        for side in (-1, 1):
            oval(side * 20, -10, 9.5, 5.5, (246, 244, 240))
            oval(side * 20, -10, 4.6, 5, (66, 84, 96))
            oval(side * 20, -10, 2.2, 2.4, (12, 12, 14))
            oval(side * 20, -22, 11, 2.4, hair)
        oval(0, 10, 6, 3, dark)
        oval(0, 6, 3, 12, tuple(int(v * 0.9) for v in tone))
        gap = 14 * opening
        oval(0, 32 + gap / 2, 17 - 3 * opening, gap / 2 + 4, lips)
        if gap > 1:
            oval(0, 32 + gap / 2, 14 - 3 * opening, gap / 2, (66, 20, 26))
        else:
            oval(0, 32, 15, 0.8, tuple(int(v * 0.55) for v in lips))
        return np.asarray(image.reduce(_SUPERSAMPLING))


def moved(picture: Picture, pixels: int) -> Picture:
    """Return the picture shifted to the right."""
    return np.roll(picture, pixels, axis=1)


def blurred(picture: Picture, radius: float) -> Picture:
    """Return the blurred picture."""
    return np.asarray(Image.fromarray(picture).filter(ImageFilter.GaussianBlur(radius)))


def brightened(picture: Picture, levels: int) -> Picture:
    """Return the picture with every channel raised."""
    return np.clip(picture.astype(np.int16) + levels, 0, 255).astype(np.uint8)
