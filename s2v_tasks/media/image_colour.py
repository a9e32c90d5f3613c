"""Convert the colours of a picture to sRGB, the colour space of the models and of our videos.

Phones take photos in Display P3, cameras in Adobe RGB. Interpreted as sRGB, their skin colours are too pale.
"""

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms

from s2v_tasks.media.image_metadata import Metadata

_SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
_INTENT = ImageCms.Intent.RELATIVE_COLORIMETRIC
_FLAGS = ImageCms.Flags.BLACKPOINTCOMPENSATION
_MODE_OF_SPACE = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}
_SAME_LEVELS = 1  # profiles of sRGB differ by one level because of rounding
_WHITE_OVER_BLACK = 128  # levels that any valid profile has between the two

_Matrix = npt.NDArray[np.float64]
_D65 = (0.3127, 0.3290)
# x and y of white, red, green and blue, by the code points of ITU-T H.273, which the PNG chunk cICP uses.
_PRIMARIES = {
    1: (*_D65, 0.640, 0.330, 0.300, 0.600, 0.150, 0.060),  # sRGB and BT.709
    5: (*_D65, 0.640, 0.330, 0.290, 0.600, 0.150, 0.060),  # BT.601, 625 lines
    6: (*_D65, 0.630, 0.340, 0.310, 0.595, 0.155, 0.070),  # BT.601, 525 lines
    9: (*_D65, 0.708, 0.292, 0.170, 0.797, 0.131, 0.046),  # BT.2020
    12: (*_D65, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),  # Display P3
}
_SRGB_CURVE = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
# 4 and 5 are a gamma, 8 is linear, 13 is sRGB. The others are curves of video, whose frames players show as sRGB.
_CURVES: dict[int, tuple[float, ...]] = {4: (2.2,), 5: (2.8,), 8: (1.0,)} | dict.fromkeys(
    (1, 6, 13, 14, 15), _SRGB_CURVE
)
_GAMMAS = range(20_000, 500_001)  # of gAMA; other values would make the picture black or white
_SRGB_GAMMAS = range(44_455, 46_456)  # 1/2.2 with rounding: programs write it for sRGB
_D50 = np.array([0.9642, 1.0, 0.8249])
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])


class _UnsuitableError(Exception):
    """A description of colours is damaged, or does not match the picture."""


@dataclass(frozen=True)
class Colours:
    """The conversion of a picture to sRGB, and a warning about ignored descriptions of its colours."""

    mode: str  # of the input of `transform`: RGB, L or CMYK
    transform: Callable[[Image.Image], Image.Image] | None = None  # None: Pillow's own conversion
    warning: str | None = None


def colours(metadata: Metadata, image_mode: str) -> Colours:
    """Read the description of the colours of a picture in Pillow's `image_mode`.

    The first of cICP, ICC profile, sRGB, and gAMA with cHRM counts, as PNG specifies. A description that is damaged or
    does not match is skipped with a warning; a description of sRGB changes nothing.
    """
    is_grey = image_mode in {"1", "L", "LA"} or image_mode.startswith("I")
    mode = "CMYK" if image_mode == "CMYK" else "L" if is_grey else "RGB"
    warnings: list[str] = []
    for name, profile in _descriptions(metadata, mode):
        try:
            return Colours(mode, _transform(profile(), mode), " ".join(warnings) or None)
        except _UnsuitableError as error:
            warnings.append(f"The {name} is ignored: {error}.")
    return Colours(mode, None, " ".join(warnings) or None)


def _descriptions(metadata: Metadata, mode: str) -> Iterator[tuple[str, Callable[[], bytes | None]]]:
    """Yield name and ICC profile of each description in order of precedence; no profile means sRGB."""
    if metadata.cicp is not None:
        cicp = metadata.cicp
        yield "colour code (cICP)", lambda: _profile_of_code(cicp, mode)
    if metadata.icc is not None:
        icc = metadata.icc
        yield "colour profile", lambda: icc
    if metadata.is_srgb:
        yield "sRGB mark", lambda: None
    if metadata.gamma is not None or metadata.chromaticities is not None:
        yield "gamma (gAMA, cHRM)", lambda: _profile_of_gamma(metadata.gamma, metadata.chromaticities, mode)


def _transform(profile: bytes | None, mode: str) -> Callable[[Image.Image], Image.Image] | None:
    """Return the conversion from `profile` to sRGB; None if it would change nothing."""
    if profile is None:
        return None
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = source.profile.xcolor_space.strip()
        if _MODE_OF_SPACE.get(space) != mode:
            raise _UnsuitableError(f"it is for {space}, the picture is {mode}")
        transform = ImageCms.ImageCmsTransform(source, _SRGB, mode, "RGB", _INTENT, flags=_FLAGS)
        probe = _probe(mode)
        found = np.asarray(transform.apply(probe)).astype(int)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise _UnsuitableError("it is damaged") from error
    if found[0, 0].mean() - found[0, -1].mean() < _WHITE_OVER_BLACK:
        raise _UnsuitableError("it maps white and black to nearly the same colour")
    if mode != "CMYK" and np.abs(found - np.asarray(probe.convert("RGB"))).max() <= _SAME_LEVELS:
        return None
    return transform.apply


def _probe(mode: str) -> Image.Image:
    """Return a picture with colours of the whole space, from white to black."""
    levels = np.linspace(255, 0, 9).round().astype(np.uint8)
    if mode == "CMYK":
        ink = np.array([[[0, 0, 0, 0], [0, 128, 128, 0], [255, 255, 255, 255]]], np.uint8)
        return Image.fromarray(ink, "CMYK")
    if mode == "L":
        return Image.fromarray(np.arange(255, -1, -1, dtype=np.uint8)[None])
    return Image.fromarray(np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(1, -1, 3))


def _profile_of_code(cicp: bytes, mode: str) -> bytes:
    primaries, curve, *rest = cicp if len(cicp) == 4 else (0, 0)
    if primaries not in _PRIMARIES or curve not in _CURVES or rest != [0, 1]:
        raise _UnsuitableError(f"{'-'.join(map(str, cicp[:4]))} cannot be converted: HDR is not supported")
    return _built(_CURVES[curve], _PRIMARIES[primaries], mode)


def _profile_of_gamma(gamma: int | None, chromaticities: tuple[int, ...] | None, mode: str) -> bytes:
    if gamma is not None and gamma not in _GAMMAS:
        raise _UnsuitableError(f"{gamma / 100_000:g} is not a gamma, expected about {1 / 2.2:.2f}")
    curve = _SRGB_CURVE if gamma is None or gamma in _SRGB_GAMMAS else (100_000 / gamma,)
    points = _PRIMARIES[1] if chromaticities is None else tuple(value / 100_000 for value in chromaticities)
    return _built(curve, points, mode)


def _built(curve: tuple[float, ...], points: tuple[float, ...], mode: str) -> bytes:
    """Return an ICC profile (version 4) of a curve and, for RGB, of the x and y of white, red, green and blue."""
    trc = b"para\0\0\0\0" + (3 if len(curve) > 1 else 0).to_bytes(2) + b"\0\0" + _fixed(*curve)
    if mode == "RGB":
        columns = zip((b"r", b"g", b"b"), _colorants(points).T, strict=True)
        parts = {name + b"XYZ": b"XYZ \0\0\0\0" + _fixed(*column) for name, column in columns}
        parts |= {name + b"TRC": trc for name in (b"r", b"g", b"b")}
    else:
        parts = {b"kTRC": trc}
    table, data, start = b"", b"", 128 + 4 + 12 * len(parts)
    for tag, part in parts.items():
        table += tag + (start + len(data)).to_bytes(4) + len(part).to_bytes(4)
        data += part
    space = b"RGB " if mode == "RGB" else b"GRAY"
    head = (start + len(data)).to_bytes(4) + bytes(4) + b"\4\0\0\0mntr" + space + b"XYZ " + bytes(12) + b"acsp"
    head = (head + bytes(28) + _fixed(*_D50)).ljust(128, b"\0")
    return head + len(parts).to_bytes(4) + table + data


def _fixed(*values: float) -> bytes:
    """Encode numbers as fixed point, 16 bits before and 16 behind the point."""
    return b"".join(round(value * 65_536).to_bytes(4, signed=True) for value in values)


def _colorants(points: tuple[float, ...]) -> _Matrix:
    """Return XYZ of red, green and blue (columns), adapted to the white of ICC profiles."""
    try:
        white, *primaries = ((x / y, 1.0, (1 - x - y) / y) for x, y in zip(points[::2], points[1::2], strict=True))
        matrix = np.array(primaries).T
        matrix = matrix * np.linalg.solve(matrix, np.array(white))
        with np.errstate(all="ignore"):
            cones = (_BRADFORD @ _D50) / (_BRADFORD @ np.array(white))
            adapted: _Matrix = np.linalg.solve(_BRADFORD, cones[:, None] * (_BRADFORD @ matrix))
    except (ValueError, ArithmeticError) as error:
        raise _UnsuitableError("its chromaticities do not give a colour space") from error
    if not np.abs(adapted).max() < 4:
        raise _UnsuitableError("its chromaticities do not give a colour space")
    return adapted
