"""Drawn people of many looks, whose mouth, eyes and head move.

A person is drawn once in layers (wall, body, head with open, half open and closed eyes). A frame needs only the mouth
and one affine transform of the head. Coordinates are those of a picture of 480 x 640 whose face is
centred at (240, 278).
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw, ImageFilter

Frames = NDArray[np.uint8]  # [n, height, width, 3]
_SCALE = 2  # layers are drawn twice as large and reduced: smooth edges
_CENTRE = (240.0, 278.0)
_MOUTH_Y = 372.0
_SKINS = ((250, 214, 190), (232, 182, 152), (214, 160, 126), (178, 124, 92), (134, 88, 64), (98, 64, 48))
_HAIRS = ((56, 34, 26), (30, 24, 22), (112, 70, 40), (196, 158, 96), (146, 66, 36), (128, 126, 130), (70, 50, 60))
_IRISES = ((124, 88, 48), (86, 118, 160), (92, 124, 80), (60, 44, 34))
_LASHES = (34, 20, 18)
_EYE_STATES = (0.0, 0.5, 1.0)  # closed by how much


@dataclass(frozen=True)
class Pose:
    """The moving parts in one frame."""

    opening: float = 0.0  # of the mouth, 0..1
    width: float = 0.5  # of the mouth, 0 rounded, 1 spread
    blink: float = 0.0  # 1: eyes closed
    shift: tuple[float, float] = (0.0, 0.0)  # of the head, in units of the geometry
    tilt: float = 0.0  # of the head, degrees


class Person:
    """One drawn person at one picture size."""

    def __init__(self, rng: np.random.Generator, width: int, height: int) -> None:
        self.width, self.height = width, height
        # As the engine fits a portrait of 480 x 640: scaled to cover, then cropped.
        self.unit = max(width / 480, height / 640) * _SCALE * rng.uniform(0.92, 1.28)
        self.origin = (
            width * _SCALE / 2 + rng.uniform(-0.06, 0.06) * width * _SCALE,
            height * _SCALE * 0.5 + (_CENTRE[1] - 320) * self.unit + rng.uniform(-0.04, 0.04) * height * _SCALE,
        )
        self._draw_looks(rng)
        self._static = self._draw_static(rng)
        self._heads: dict[float, Image.Image] = {}  # by how much the eyes are closed

    def _draw_looks(self, rng: np.random.Generator) -> None:
        skin = np.array(_SKINS[rng.integers(len(_SKINS))]) + rng.normal(0, 8, 3)
        self.skin = _colour(skin)
        self.shade, self.light = _colour(skin * (0.72, 0.62, 0.58)), _colour(skin * 0.7 + 82)
        self.hair = _colour(np.array(_HAIRS[rng.integers(len(_HAIRS))]) + rng.normal(0, 8, 3))
        self.hair_length = int(rng.integers(4))  # none at the sides, short, chin, shoulders
        self.fringe = float(rng.uniform(-1, 1))  # where the hair is parted
        self.glasses = bool(rng.random() < 0.22)
        self.iris = _IRISES[rng.integers(len(_IRISES))]
        lips = np.array([188, 82, 80]) * rng.uniform(0.4, 1) + skin * (0.45, 0.28, 0.28)
        self.lips = _colour(lips + rng.normal(0, 6, 3))
        self.shirt = _colour(rng.uniform(20, 220, 3))
        self.long, self.wide = float(rng.uniform(0.94, 1.08)), float(rng.uniform(0.92, 1.1))
        self.mouth_half, self.lip = float(rng.uniform(36, 48)), float(rng.uniform(7, 12))
        self.brow = float(rng.uniform(4, 9))
        self.eye = float(rng.uniform(0.9, 1.15))
        self.soft = float(rng.uniform(0.3, 1))  # strength of light and shade

    # Geometry.

    def _at(self, points: Any) -> list[tuple[float, float]]:
        scaled = (np.asarray(points, dtype=float) - _CENTRE) * self.unit + self.origin
        return [(float(x), float(y)) for x, y in scaled]

    def _layer(self) -> Image.Image:
        return Image.new("L", (self.width * _SCALE, self.height * _SCALE))

    def _curve(self, points: Any) -> Image.Image:
        mask = self._layer()
        ImageDraw.Draw(mask).polygon(self._at(_closed_curve(np.asarray(points, dtype=float))), fill=255)
        return mask

    def _oval(self, centre: tuple[float, float], radii: tuple[float, float], blur: float = 0) -> Image.Image:
        (x, y), (a, b) = centre, radii
        mask = self._layer()
        (left, top), (right, bottom) = self._at([(x - a, y - b), (x + a, y + b)])
        ImageDraw.Draw(mask).ellipse([left, top, right, bottom], fill=255)
        return mask.filter(ImageFilter.GaussianBlur(blur * self.unit)) if blur else mask

    def _face(self, points: Any) -> NDArray[np.float64]:
        """Return the points of the face, as long and wide as that of this person."""
        return (np.asarray(points, dtype=float) - _CENTRE) * (self.wide, self.long) + _CENTRE

    # Layers.

    def _draw_static(self, rng: np.random.Generator) -> Image.Image:
        y, x = np.mgrid[0:1:48j, 0:1:48j]
        at = rng.uniform(0, 1, 2)
        glow = np.exp(-(((x - at[0]) / rng.uniform(0.3, 0.9)) ** 2 + ((y - at[1]) / rng.uniform(0.3, 0.9)) ** 2))
        dark, bright = rng.uniform(30, 200, 3), rng.uniform(60, 245, 3)
        dark, bright = (0.6 * colour + 0.4 * colour.mean() for colour in (dark, bright))
        wall = dark * (1 - glow[..., None]) + bright * glow[..., None]
        size = (self.width * _SCALE, self.height * _SCALE)
        image = Image.fromarray(wall.astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)
        if self.hair_length >= 2:
            low = (430, 490)[self.hair_length - 2]
            back = _mirrored([
                (240, 92),
                (318, 112),
                (362, 190),
                (368, 300),
                (376, low - 90),
                (352, low - 20),
                (300, low),
            ])
            _lay(image, self._curve(self._face(back)), _colour(np.array(self.hair) * 0.8))
        shoulders = self._curve(_mirrored([(240, 470), (300, 478), (380, 512), (448, 570), (500, 760), (400, 900)]))
        _lay(image, shoulders, self.shirt)
        shirt = np.array(self.shirt)
        bright, dark = self._oval((140, 570), (90, 110), 28), self._oval((420, 650), (90, 100), 30)
        _lay(image, ImageChops.multiply(bright, shoulders), _colour(shirt * 0.7 + 70), 0.5 * self.soft)
        _lay(image, ImageChops.multiply(dark, shoulders), _colour(shirt * 0.45), 0.8 * self.soft)
        neck = self._curve(_mirrored([(240, 350), (284, 366), (286, 440), (306, 482), (270, 508), (240, 514)]))
        _lay(image, neck, _colour(np.array(self.skin) * 0.92))
        under = ImageChops.multiply(self._oval((246, 424 * self.long), (60, 34), 12), neck)
        _lay(image, under, self.shade, 0.4 + 0.4 * self.soft)
        return image

    def _draw_head(self, blink: float) -> Image.Image:
        outline = [(240, 128), (302, 146), (336, 206), (335, 290), (319, 352), (284, 406), (240, 426)]
        skin = self._curve(self._face(_mirrored(outline)))
        image = Image.new("RGB", skin.size, self.skin)
        alpha = skin
        for x in (146, 334):
            centre = self._face([(x, 284)])[0]
            ear = self._oval((centre[0], centre[1]), (14, 28))
            _lay(image, ImageChops.subtract(ear, skin), _colour(np.array(self.skin) * 0.9))
            alpha = ImageChops.lighter(alpha, ear)
        strokes = (
            ((352, 290), (66, 170), 30, self.shade, 0.7), ((192, 220), (60, 66), 26, self.light, 0.6),
            ((240, 430), (70, 22), 14, self.shade, 0.45), ((262, 308), (10, 32), 7, self.shade, 0.55),
            ((236, 300), (7, 26), 6, self.light, 0.5), ((240, 332), (19, 6), 4, self.shade, 0.7),
        )  # fmt: skip
        for centre, radii, blur, colour, opacity in strokes:
            _lay(image, ImageChops.multiply(self._oval(centre, radii, blur), skin), colour, opacity * self.soft)
        for x in (230, 251):
            _lay(image, self._oval((x, 333), (4, 2.5), 1), _colour(np.array(self.shade) * 0.6), 0.8)
        self._draw_eyes(image, blink)
        if self.hair_length or self.fringe > -0.6:
            alpha = ImageChops.lighter(alpha, self._draw_hair(image))
        image.putalpha(alpha)
        return image

    def _draw_eyes(self, image: Image.Image, blink: float) -> None:
        for x, side in ((194, -1), (286, 1)):
            e, lid = self.eye, 1 - blink
            _lay(image, self._oval((x, 262), (30 * e, 19 * e), 8), self.shade, 0.4 * self.soft)
            almond = [(-23, 3), (-10, -9 * lid), (8, -10 * lid), (23, 1), (8, 11 * lid), (-10, 11 * lid)]
            if lid > 0.2:
                white = self._curve([(x + e * a, 263 + e * b) for a, b in almond])
                _lay(image, white, (242, 238, 232))
                for radius, colour in ((11, _colour(np.array(self.iris) * 0.6)), (8, self.iris), (5, (14, 10, 10))):
                    iris = self._oval((x, 263), (radius * e, radius * e))
                    _lay(image, ImageChops.multiply(iris, white), colour)
            upper = [(-25, 4), (-11, -12 * lid), (9, -13 * lid), (26, 1), (9, -6 * lid + 3), (-10, -5 * lid + 3)]
            _lay(image, self._curve([(x + e * a, 263 + e * b) for a, b in upper]), _LASHES)
            brow = [(x - side * 28, 236), (x + side * 6, 226), (x + side * 32, 238), (x + side * 6, 226 + self.brow)]
            _lay(image, self._curve(brow), _colour(np.array(self.hair) * 0.75), 0.9)
        if self.glasses:
            draw, line = ImageDraw.Draw(image), max(2, round(5 * self.unit))
            for x in (194, 286):
                (left, top), (right, bottom) = self._at([(x - 37, 232), (x + 37, 296)])
                draw.ellipse([left, top, right, bottom], outline=(28, 26, 30), width=line)
            draw.line(self._at([(231, 258), (249, 258)]), fill=(28, 26, 30), width=line)

    def _draw_hair(self, image: Image.Image) -> Image.Image:
        """Draw the front of the hair; return its mask."""
        low = (236, 262, 330, 372)[self.hair_length]
        part = 240 + 60 * self.fringe
        points = [
            (212, 104), (290, 100), (344, 152), (360, 220), (354, low), (338, low - 20), (326, 216),
            (part + 70, 176), (part, 160), (part - 66, 184), (154, 222), (142, low - 20), (124, low), (118, 220),
            (136, 156), (170, 116),
        ]  # fmt: skip
        mask = self._curve(self._face(points))
        _lay(image, mask, self.hair)
        hair = np.array(self.hair)
        shine = ImageChops.multiply(self._oval((200, 134), (60, 14), 6), mask)
        _lay(image, shine, _colour(hair * 0.7 + 60), 0.7 * self.soft)
        return mask

    # Frames.

    def frame(self, pose: Pose) -> NDArray[np.uint8]:
        """Return one picture `[height, width, 3]`."""
        blink = min(_EYE_STATES, key=lambda state: abs(state - pose.blink))
        if blink not in self._heads:
            self._heads[blink] = self._draw_head(blink)
        head = self._heads[blink].copy()
        self._draw_mouth(head, pose)
        if any(pose.shift) or pose.tilt:
            # The head turns around the neck.
            angle, (x, y) = math.radians(pose.tilt), self._at([(240, 440)])[0]
            c, s = math.cos(angle), math.sin(angle)
            u, v = x + pose.shift[0] * self.unit, y + pose.shift[1] * self.unit
            affine = (c, s, x - c * u - s * v, -s, c, y + s * u - c * v)
            head = head.transform(head.size, Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR)
        image = self._static.copy()
        image.paste(head, mask=head.getchannel("A"))
        return np.asarray(image.reduce(_SCALE))

    def _draw_mouth(self, head: Image.Image, pose: Pose) -> None:
        """Draw lips, teeth and tongue, in a patch that is twice as large again."""
        half = self.mouth_half * (0.78 + 0.36 * pose.width)
        gap = 46 * pose.opening
        x = np.linspace(-1, 1, 25)
        bow = np.sqrt(np.maximum(0, 1 - x**2))
        rise, fall = -0.3 * gap * bow, 0.7 * gap * bow
        cupid = 1 - 0.3 * np.exp(-((x / 0.22) ** 2))
        upper, lower = rise - self.lip * 0.8 * bow * cupid, fall + self.lip * 1.15 * bow
        inner = half * 0.86
        (left, top), (right, bottom) = self._at([(240 - 66, _MOUTH_Y - 40), (240 + 66, _MOUTH_Y + 66)])
        box = [math.floor(left), math.floor(top), math.ceil(right), math.ceil(bottom)]
        size = (box[2] - box[0], box[3] - box[1])
        centre = self._at([(240, _MOUTH_Y)])[0]

        def place(xs: NDArray[Any], ys: NDArray[Any]) -> list[tuple[float, float]]:
            return [
                ((centre[0] - box[0] + a * self.unit) * 2, (centre[1] - box[1] + b * self.unit) * 2)
                for a, b in zip(xs, ys, strict=True)
            ]

        def polygon(
            xs: NDArray[Any], above: NDArray[Any], below: NDArray[Any], clip: Image.Image | None
        ) -> Image.Image:
            mask = Image.new("L", (size[0] * 2, size[1] * 2))
            ImageDraw.Draw(mask).polygon(place(np.r_[xs, xs[::-1]], np.r_[above, below[::-1]]), fill=255)
            return ImageChops.multiply(mask, clip) if clip else mask

        patch = head.crop(tuple(box)).convert("RGB").resize((size[0] * 2, size[1] * 2), Image.Resampling.BILINEAR)
        _lay(patch, polygon(half * x, upper, lower, None), self.lips)
        if gap > 3:
            hole = polygon(inner * x, rise, fall, None)
            _lay(patch, hole, (72, 22, 26))
            _lay(patch, polygon(inner * x, fall - 0.3 * gap, fall + 1, hole), (166, 74, 76), min(1, gap / 24))
            _lay(patch, polygon(0.8 * inner * x, rise - 1, rise + min(9, 0.45 * gap), hole), (240, 234, 226))
        else:
            _lay(patch, polygon(inner * x, rise - 1.1, fall + 1.1, None), (96, 34, 36))
        alpha = head.getchannel("A")
        head.paste(patch.reduce(2), (box[0], box[1]))
        head.putalpha(alpha)

    def mouth_box(self) -> tuple[int, int, int, int]:
        """Return left, top, right and bottom of the region in which the mouth moves, in pixels."""
        (left, top), (right, bottom) = self._at([(240 - 62, _MOUTH_Y - 34), (240 + 62, _MOUTH_Y + 56)])
        return (
            max(0, math.floor(left / _SCALE)), max(0, math.floor(top / _SCALE)),
            min(self.width, math.ceil(right / _SCALE)), min(self.height, math.ceil(bottom / _SCALE)),
        )  # fmt: skip


class Motion:
    """Blinks and sway of a head over time, drawn from a seed."""

    def __init__(self, rng: np.random.Generator, num_seconds: float) -> None:
        self._amplitudes = rng.uniform(0, 1, 3) * (3.0, 2.0, 0.5)
        self._rates, self._phases = rng.uniform(0.6, 1.6, 3), rng.uniform(0, 2 * math.pi, 3)
        self._blinks = np.cumsum(rng.uniform(2, 7, max(1, round(num_seconds / 3))))

    def pose(self, seconds: float, opening: float, width: float) -> Pose:
        """Return the pose at a time, with the mouth as given."""
        x, y, tilt = self._amplitudes * np.sin(self._rates * seconds + self._phases)
        blink = float(np.max(np.clip(1.4 - np.abs(seconds - self._blinks) / 0.09, 0, 1)))
        return Pose(opening, width, blink, (float(x), float(y)), float(tilt))


def _closed_curve(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return points of the closed smooth curve through `p` (Catmull-Rom)."""
    before, after, beyond = np.roll(p, 1, 0), np.roll(p, -1, 0), np.roll(p, -2, 0)
    t = np.linspace(0, 1, 12, endpoint=False)[None, :, None]
    q, a, b, c = (v[:, None] for v in (before, p, after, beyond))
    curve = 0.5 * (2 * a + (b - q) * t + (2 * q - 5 * a + 4 * b - c) * t**2 + (3 * a - q - 3 * b + c) * t**3)
    return curve.reshape(-1, 2)


def _mirrored(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    return [*points, *((480 - x, y) for x, y in reversed(points) if x != 240)]


def _colour(values: Any) -> tuple[int, int, int]:
    r, g, b = (int(min(255, max(0, value))) for value in values)
    return r, g, b


def _lay(image: Image.Image, mask: Image.Image, colour: tuple[int, int, int], opacity: float = 1) -> None:
    if opacity < 1:
        mask = mask.point(lambda value: round(value * opacity))
    image.paste(colour, (0, 0, *image.size), mask)
