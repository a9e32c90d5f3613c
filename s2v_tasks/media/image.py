"""The reference picture: from any uploaded photo to a plain 8-bit RGB PNG in sRGB."""

import struct
import tempfile
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, UnidentifiedImageError

from s2v_tasks import log
from s2v_tasks.errors import PermanentError
from s2v_tasks.media.image_colour import Colours, colours
from s2v_tasks.media.image_format import other_format
from s2v_tasks.media.image_metadata import Metadata, split

# Pillow holds a picture in 4 bytes a pixel and we copy it once: 320 MB. Its WebP decoder keeps three more of them.
DEFAULT_MAX_PIXELS = 40_000_000
_MAX_WEBP_PIXELS = 20_000_000
_FORMATS = ("PNG", "JPEG", "WEBP")
_STRIP_PIXELS = 1_000_000
_ACCEPTED = "PNG, JPEG or WebP"
_MIN_SIDE = 32
# Beyond it the video would show a strip of the picture or nothing: planning refuses the same.
_MAX_ASPECT = 4
# Pillow's decoders report damage with any of these.
_DAMAGE = (
    OSError, SyntaxError, ValueError, EOFError, TypeError, AttributeError, AssertionError, LookupError, ArithmeticError,
    struct.error, zlib.error,
)  # fmt: skip


@dataclass(frozen=True)
class ImageInfo:
    """Size in pixels after the camera's rotation was applied, and what people should know of the colours."""

    width: int
    height: int
    warning: str | None = None


def normalise_image(source: Path, png: Path, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> ImageInfo:
    """Write `source` upright, opaque and in 8-bit sRGB to `png`, with reproducible bytes and no metadata.

    Transparency is laid over white: that is the page on which people see cut-out portraits. Raises PermanentError, in
    one sentence, if the file is empty, no such picture, damaged, animated, or its size cannot be used.
    """
    if source.stat().st_size == 0:
        raise PermanentError(f"The image {source.name} is empty (0 bytes): upload a {_ACCEPTED} picture.")
    if other := other_format(source):
        raise PermanentError(f"The image {source.name} is {other.name}: expected {_ACCEPTED}; {other.remedy}.")
    with tempfile.TemporaryFile(dir=png.parent) as pixels:
        plain, warning = _decode(source.name, pixels, split(source, pixels), max_pixels)
    plain.save(png, format="PNG")
    if warning:
        log.get_logger().warning("image_colours_as_srgb", image=source.name, reason=warning)
    return ImageInfo(*plain.size, warning)


def _decode(name: str, file: IO[bytes], metadata: Metadata, max_pixels: int) -> tuple[Image.Image, str | None]:
    """The picture, upright and in RGB, and what should be known of its colours."""
    unreadable = f"The image {name} is not a readable picture (expected {_ACCEPTED})"
    try:
        with warnings.catch_warnings():
            # Our own bound follows; Pillow's error for what is still larger is told as ours.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(file, formats=_FORMATS)
        with image:
            if image.format == "WEBP":
                max_pixels = min(max_pixels, _MAX_WEBP_PIXELS)
                metadata = _webp_metadata(image)
            if image.width * image.height > max_pixels:
                raise _too_large(name, max_pixels)
            _refuse_unusable(name, image, metadata)
            image.load()
            found = colours(metadata, image.mode)
            plain = _plain(image, found)
    except Image.DecompressionBombError:
        raise _too_large(name, max_pixels) from None
    except UnidentifiedImageError as error:
        raise PermanentError(f"{unreadable}: its beginning is damaged, or it is something else.") from error
    except _DAMAGE as error:
        raise PermanentError(f"{unreadable}: {error}.") from error
    return plain if metadata.upright is None else plain.transpose(metadata.upright), found.warning


def _webp_metadata(image: Image.Image) -> Metadata:
    info = image.info
    return Metadata(
        exif=info.get("exif", b""),
        xmp=info.get("xmp", b""),
        icc=info.get("icc_profile"),
        is_animated=getattr(image, "is_animated", False),
    )


def _too_large(name: str, max_pixels: int) -> PermanentError:
    return PermanentError(f"The image {name} has more than {max_pixels} pixels: make it smaller.")


def _refuse_unusable(name: str, image: Image.Image, metadata: Metadata) -> None:
    size = f"{image.width}x{image.height}"
    if metadata.is_animated:
        raise PermanentError(f"The image {name} is animated: upload the one picture that shall speak.")
    if min(image.size) < _MIN_SIDE:
        raise PermanentError(f"The image {name} has {size} pixels, each side must have at least {_MIN_SIDE}.")
    if max(image.size) > _MAX_ASPECT * min(image.size):
        raise PermanentError(
            f"The image {name} has {size} pixels: expected a longer side of at most {_MAX_ASPECT} times the shorter "
            "one; crop the picture around the speaker."
        )


def _plain(image: Image.Image, found: Colours) -> Image.Image:
    """A fresh picture, without the metadata that Pillow would write; made strip by strip to bound the memory."""
    plain = Image.new("RGB", image.size)
    rows = max(1, _STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(image.height, top + rows)))
        plain.paste(_to_rgb(strip, found), (0, top))
    return plain


def _to_rgb(image: Image.Image, found: Colours) -> Image.Image:
    if image.mode.startswith("I"):
        # 16-bit grey: Pillow's own conversion clips to white instead of scaling.
        image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
    layers = image.convert("RGBA") if image.has_transparency_data else None
    colour = image if layers is None else layers
    colour = colour.convert("RGB") if found.transform is None else found.transform(colour.convert(found.mode))
    if layers is None:
        return colour
    colour.putalpha(layers.getchannel("A"))
    opaque = Image.new("RGBA", image.size, "white")
    opaque.alpha_composite(colour)
    return opaque.convert("RGB")
