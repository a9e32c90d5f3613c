"""The reference picture: from any uploaded photo to a plain 8-bit RGB PNG."""

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from s2v_tasks.errors import PermanentError

# Pillow holds a picture in 4 bytes a pixel and we copy it once: 320 MB. Its WebP decoder keeps three more of them.
DEFAULT_MAX_PIXELS = 40_000_000
_MAX_WEBP_PIXELS = 20_000_000
_FORMATS = ("PNG", "JPEG", "WEBP")
_STRIP_PIXELS = 1_000_000
_ACCEPTED = "PNG, JPEG or WebP"
_MIN_SIDE = 32
# Beyond it the video would show a strip of the picture or nothing: planning refuses the same.
_MAX_ASPECT = 4


@dataclass(frozen=True)
class ImageInfo:
    """Size in pixels after the camera's rotation was applied."""

    width: int
    height: int


def normalise_image(source: Path, png: Path, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> ImageInfo:
    """Write `source` upright, opaque and in 8-bit RGB to `png`, with reproducible bytes and no metadata.

    Transparency is laid over white: that is the page on which people see cut-out portraits. Raises PermanentError, in
    one sentence, if the file is empty, no such picture, damaged, animated, or its size cannot be used.
    """
    if source.stat().st_size == 0:
        raise PermanentError(f"The image {source.name} is empty (0 bytes): upload a {_ACCEPTED} picture.")
    plain = _decode(source, max_pixels)
    plain.save(png, format="PNG")
    return ImageInfo(*plain.size)


def _decode(source: Path, max_pixels: int) -> Image.Image:
    unreadable = f"The image {source.name} is not a readable picture (expected {_ACCEPTED})"
    try:
        with warnings.catch_warnings():
            # Our own bound follows; Pillow's error for what is still larger is told as ours.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(source, formats=_FORMATS)
        with image:
            if image.format == "WEBP":
                max_pixels = min(max_pixels, _MAX_WEBP_PIXELS)
            if image.width * image.height > max_pixels:
                raise _too_large(source.name, max_pixels)
            _refuse_unusable(source.name, image)
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            return _plain(image)
    except Image.DecompressionBombError:
        raise _too_large(source.name, max_pixels) from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        # Pillow's decoders report damage with any of these.
        raise PermanentError(f"{unreadable}: {str(error).replace(str(source), source.name)}.") from error


def _too_large(name: str, max_pixels: int) -> PermanentError:
    return PermanentError(f"The image {name} has more than {max_pixels} pixels: make it smaller.")


def _refuse_unusable(name: str, image: Image.Image) -> None:
    size = f"{image.width}x{image.height}"
    if image.format in {"PNG", "WEBP"} and getattr(image, "is_animated", False):
        raise PermanentError(f"The image {name} is animated: upload the one picture that shall speak.")
    if min(image.size) < _MIN_SIDE:
        raise PermanentError(f"The image {name} has {size} pixels, each side must have at least {_MIN_SIDE}.")
    if max(image.size) > _MAX_ASPECT * min(image.size):
        raise PermanentError(
            f"The image {name} has {size} pixels: expected a longer side of at most {_MAX_ASPECT} times the shorter "
            "one; crop the picture around the speaker."
        )


def _plain(image: Image.Image) -> Image.Image:
    """A fresh picture, without the metadata that Pillow would write; made strip by strip to bound the memory."""
    plain = Image.new("RGB", image.size)
    rows = max(1, _STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(image.height, top + rows)))
        plain.paste(_to_rgb(strip), (0, top))
    return plain


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # 16-bit grey: Pillow's own conversion clips to white instead of scaling.
        image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        opaque = Image.new("RGBA", image.size, "white")
        opaque.alpha_composite(image.convert("RGBA"))
        image = opaque
    return image.convert("RGB")
