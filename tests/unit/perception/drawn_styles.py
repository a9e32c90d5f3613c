"""A second style of drawn people, with outlines, glasses and a busy background."""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from tests.unit.perception.drawn import FPS, Person, Picture


@dataclass(frozen=True)
class Cartoon(Person):
    """A person with outlines and a jaw in front of shelves, whose head nods and sways more than that of `Person`."""

    def draw(self, opening: float, seconds: float) -> Picture:
        """Return one picture u8 RGB `[H,W,3]`."""
        rng = np.random.default_rng(1000 + self.seed)
        scale = 2 * self.width / 192
        tone = tuple(int(v) for v in np.array([240, 200, 170]) * rng.uniform(0.6, 1.0))
        ink = tuple(int(v) for v in rng.uniform(10, 60, 3))
        hair = tuple(int(v) for v in rng.uniform(20, 190, 3))
        wall, shelf = rng.uniform(90, 230, 3), rng.uniform(40, 120, 3)
        has_glasses, has_beard = rng.random() < 0.5, rng.random() < 0.3
        jaw, rate = rng.uniform(0.9, 1.15), rng.uniform(0.5, 1.2)
        image = Image.new("RGB", (self.width * 2, self.height * 2), tuple(int(v) for v in wall))
        pen = ImageDraw.Draw(image)
        for row in range(6):  # shelves with books
            y = (10 + 42 * row) * scale
            pen.rectangle([0, y, image.width, y + 4 * scale], fill=tuple(int(v) for v in shelf))
            for column in range(16):
                colour = tuple(int(v) for v in rng.uniform(40, 220, 3))
                height = rng.uniform(14, 30) * scale
                x = column * 12 * scale
                pen.rectangle([x, y - height, x + 9 * scale, y], fill=colour)
        x0 = 96 + 2.5 * math.sin(rate * seconds + self.seed)
        y0 = 116 + 2.0 * math.sin(1.7 * rate * seconds)
        line = max(1, round(1.5 * scale))

        def oval(x: float, y: float, a: float, b: float, fill: object, outline: object = ink) -> None:
            box = [(x0 + x - a) * scale, (y0 + y - b) * scale, (x0 + x + a) * scale, (y0 + y + b) * scale]
            pen.ellipse(box, fill=fill, outline=outline, width=line)  # type: ignore[arg-type]

        def bar(x: float, y: float, a: float, b: float, fill: object) -> None:
            box = [(x0 + x - a) * scale, (y0 + y - b) * scale, (x0 + x + a) * scale, (y0 + y + b) * scale]
            pen.rectangle(box, fill=fill)  # type: ignore[arg-type]

        oval(0, 132, 88, 66, tuple(int(v) for v in rng.uniform(30, 220, 3)))
        oval(0, 70, 20, 26, tone)
        oval(0, -14, 54, 64, hair)
        oval(0, 0, 46, 60 * jaw, tone)
        oval(0, -50 * jaw, 40, 16, hair)
        if has_beard:
            oval(0, 44, 30, 18 * jaw, hair)
        for side in (-1, 1):
            oval(side * 19, -8, 10, 6.5, (250, 250, 250))
            oval(side * 19, -8, 4.5, 5, (60, 70, 40))
            bar(side * 19, -21, 11, 2, hair)
            if has_glasses:
                oval(side * 19, -8, 15, 12, None)
        bar(0, 4, 2.5, 9, tuple(int(v * 0.85) for v in tone))
        oval(0, 13, 7, 4, tuple(int(v * 0.8) for v in tone))
        gap = 13 * opening
        lips = tuple(int(v) for v in np.array(tone) * (0.75, 0.4, 0.4))
        oval(0, 32 + gap / 2, 16 - 2 * opening, gap / 2 + 4, lips)
        if gap > 1:
            oval(0, 32 + gap / 2, 13 - 2 * opening, gap / 2, (60, 15, 20), None)
        else:
            bar(0, 32, 14, 0.7, ink)
        return np.asarray(image.reduce(2))


def cartoon_frames(seed: int, mouth: np.ndarray) -> list[Picture]:
    """Return a frame of a cartoon for each mouth opening."""
    return [Cartoon(seed).draw(float(opening), index / FPS) for index, opening in enumerate(mouth)]
