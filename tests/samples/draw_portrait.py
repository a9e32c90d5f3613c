"""Draws portrait.jpg, the same each time: `python tests/samples/draw_portrait.py OUT.jpg` (Pillow and numpy only)."""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

WIDTH, HEIGHT, SCALE = 480, 640, 3  # drawn three times larger: smooth edges
Colour = tuple[int, int, int]
Points = Sequence[tuple[float, float]]


class Canvas:
    """A picture on which soft shapes are laid; coordinates are those of the finished picture."""

    def __init__(self) -> None:
        y, x = np.mgrid[0 : 1 : HEIGHT * 1j, 0 : 1 : WIDTH * 1j]
        glow = np.exp(-(((x - 0.32) / 0.5) ** 2 + ((y - 0.28) / 0.45) ** 2))[..., None]
        wall = np.array([62, 84, 104]) * (1 - glow) + np.array([196, 198, 184]) * glow
        self.image = Image.fromarray(wall.astype(np.uint8)).resize(
            (WIDTH * SCALE, HEIGHT * SCALE), Image.Resampling.BICUBIC
        )

    def _lay(self, mask: Image.Image, colour: Colour, blur: float, inside: Image.Image | None) -> Image.Image:
        mask = mask.filter(ImageFilter.GaussianBlur(blur * SCALE)) if blur else mask
        mask = ImageChops.multiply(mask, inside) if inside else mask
        self.image.paste(Image.new("RGB", self.image.size, colour), mask=mask)
        return mask

    def oval(
        self,
        centre: tuple[float, float],
        radii: tuple[float, float],
        colour: Colour,
        *,
        opacity: float = 1,
        blur: float = 0,
        inside: Image.Image | None = None,
    ) -> Image.Image:
        """An ellipse; returns its mask."""
        (x, y), (a, b) = centre, radii
        mask = Image.new("L", self.image.size)
        box = [(x - a) * SCALE, (y - b) * SCALE, (x + a) * SCALE, (y + b) * SCALE]
        ImageDraw.Draw(mask).ellipse(box, fill=round(255 * opacity))
        return self._lay(mask, colour, blur, inside)

    def shape(
        self, points: Points, colour: Colour, *, opacity: float = 1, blur: float = 0, inside: Image.Image | None = None
    ) -> Image.Image:
        """A closed smooth curve through `points` (Catmull-Rom); returns its mask."""
        p = np.array(points, dtype=float)
        before, after, beyond = np.roll(p, 1, 0), np.roll(p, -1, 0), np.roll(p, -2, 0)
        t = np.linspace(0, 1, 24, endpoint=False)[None, :, None]
        q, a, b, c = (v[:, None] for v in (before, p, after, beyond))
        curve = 0.5 * (2 * a + (b - q) * t + (2 * q - 5 * a + 4 * b - c) * t**2 + (3 * a - q - 3 * b + c) * t**3)
        mask = Image.new("L", self.image.size)
        outline = [(float(x), float(y)) for x, y in curve.reshape(-1, 2) * SCALE]
        ImageDraw.Draw(mask).polygon(outline, fill=round(255 * opacity))
        return self._lay(mask, colour, blur, inside)


def mirrored(points: Points) -> list[tuple[float, float]]:
    """A right half (from the top of the middle line down) completed to a symmetric outline around x = 240."""
    return [*points, *((480 - x, y) for x, y in reversed(points) if x != 240)]


def draw_body(canvas: Canvas) -> None:
    """Back hair, shoulders in a dark green sweater, neck."""
    canvas.shape(
        mirrored([(240, 92), (318, 112), (362, 190), (368, 300), (376, 400), (352, 470), (300, 490)]), (46, 28, 22)
    )
    shoulders = canvas.shape(
        mirrored([(240, 470), (300, 478), (380, 512), (438, 560), (470, 660), (400, 700)]), (38, 78, 74)
    )
    canvas.oval((140, 560), (90, 110), (74, 124, 116), opacity=0.5, blur=28, inside=shoulders)
    canvas.oval((420, 640), (90, 100), (16, 40, 40), opacity=0.8, blur=30, inside=shoulders)
    canvas.shape(mirrored([(240, 360), (284, 372), (286, 440), (306, 482), (270, 508), (240, 514)]), (214, 160, 132))
    canvas.oval((250, 424), (58, 34), (140, 84, 68), opacity=0.75, blur=14)
    canvas.shape(
        [
            (172, 482),
            (206, 500),
            (240, 514),
            (274, 500),
            (308, 482),
            (318, 498),
            (280, 524),
            (240, 534),
            (200, 524),
            (162, 498),
        ],
        (28, 60, 58),
    )


def draw_face(canvas: Canvas) -> Image.Image:
    """Head with light from the left; returns the mask of the skin."""
    for x in (146, 334):
        canvas.oval((x, 284), (14, 28), (206, 146, 118))
    skin = canvas.shape(
        mirrored([(240, 132), (300, 146), (334, 206), (334, 290), (318, 352), (284, 404), (240, 424)]), (232, 182, 152)
    )
    canvas.oval((352, 290), (66, 170), (168, 104, 82), opacity=0.75, blur=30, inside=skin)
    canvas.oval((192, 220), (60, 66), (255, 222, 196), opacity=0.6, blur=26, inside=skin)
    canvas.oval((240, 424), (70, 24), (170, 108, 86), opacity=0.5, blur=14, inside=skin)
    for x in (184, 298):
        canvas.oval((x, 316), (30, 20), (224, 118, 100), opacity=0.38, blur=14, inside=skin)
    canvas.shape([(252, 262), (266, 320), (256, 336), (240, 326)], (176, 112, 88), opacity=0.45, blur=7)
    canvas.oval((236, 300), (7, 26), (255, 226, 204), opacity=0.7, blur=6)
    canvas.oval((240, 332), (19, 6), (160, 92, 74), opacity=0.55, blur=4)
    for x in (230, 251):
        canvas.oval((x, 333), (4, 2.5), (96, 46, 40), opacity=0.8, blur=1)
    return skin


def draw_eyes(canvas: Canvas) -> None:
    """Eyes that look at the viewer, lashes and brows."""
    for x, side in ((194, -1), (286, 1)):
        canvas.oval((x, 262), (30, 19), (150, 92, 76), opacity=0.4, blur=8)
        white = canvas.shape(
            [(x - 23, 266), (x - 10, 254), (x + 8, 253), (x + 23, 264), (x + 8, 274), (x - 10, 274)], (242, 238, 232)
        )
        canvas.oval((x, 263), (11, 11), (70, 52, 34), inside=white)
        canvas.oval((x, 265), (8, 8), (124, 88, 48), blur=2, inside=white)
        canvas.oval((x, 263), (5, 5), (14, 10, 10), inside=white)
        canvas.oval((x - 4, 259), (2.6, 2.6), (255, 255, 255), inside=white)
        canvas.shape(
            [(x - 25, 267), (x - 11, 251), (x + 9, 250), (x + 26, 264), (x + 9, 256), (x - 10, 257)], (34, 20, 18)
        )
        brow = [(x - side * 28, 238), (x + side * 6, 226), (x + side * 32, 238), (x + side * 6, 233)]
        canvas.shape(brow, (50, 30, 24), opacity=0.9, blur=1)


def draw_mouth(canvas: Canvas) -> None:
    """Lips, a little open, as before a word."""
    canvas.oval((240, 396), (26, 6), (150, 90, 72), opacity=0.5, blur=5)
    canvas.shape(
        [(202, 365), (224, 360), (240, 364), (256, 360), (278, 365), (258, 382), (240, 386), (222, 382)], (188, 82, 80)
    )
    canvas.shape([(210, 369), (240, 367), (270, 369), (240, 375)], (84, 26, 30))
    canvas.shape([(222, 369), (240, 368), (258, 369), (240, 371)], (240, 232, 226))
    canvas.oval((236, 380), (14, 2.5), (232, 150, 142), opacity=0.7, blur=2)


def draw_hair(canvas: Canvas) -> None:
    """The front of the hair: parted on one side, with strands of light."""
    hair = canvas.shape(
        [
            (212, 104),
            (290, 98),
            (344, 152),
            (362, 236),
            (360, 330),
            (344, 372),
            (336, 290),
            (326, 220),
            (290, 176),
            (236, 160),
            (196, 188),
            (158, 232),
            (148, 300),
            (138, 372),
            (118, 330),
            (116, 240),
            (136, 156),
            (170, 116),
        ],
        (56, 34, 26),
    )
    for offset in range(0, 60, 12):
        strand = [
            (150 + offset, 150 - offset * 0.5),
            (204 + offset, 124 - offset * 0.3),
            (258 + offset, 128),
            (204 + offset, 131 - offset * 0.3),
        ]
        canvas.shape(strand, (140, 94, 66), opacity=0.55, blur=4, inside=hair)
    canvas.oval((128, 300), (8, 80), (120, 80, 58), opacity=0.5, blur=7, inside=hair)
    canvas.oval((360, 280), (18, 110), (22, 12, 12), opacity=0.7, blur=12, inside=hair)


def main(path: Path) -> None:
    """Draw the portrait and write it as JPEG."""
    canvas = Canvas()
    draw_body(canvas)
    draw_face(canvas)
    draw_eyes(canvas)
    draw_mouth(canvas)
    draw_hair(canvas)
    portrait = canvas.image.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)
    grain = np.random.default_rng(0).normal(0, 2.2, (HEIGHT, WIDTH, 1))
    Image.fromarray(np.clip(np.asarray(portrait) + grain, 0, 255).astype(np.uint8)).save(path, quality=90)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
