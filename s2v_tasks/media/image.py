"""Normalise the reference picture: any uploaded photo becomes a plain 8-bit RGB PNG in sRGB."""

import re
import struct
import tempfile
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from s2v_tasks import log
from s2v_tasks.errors import PermanentError
from s2v_tasks.media.image_colour import Colours, colours
from s2v_tasks.media.image_metadata import Metadata, split

# Pillow needs 4 bytes per pixel and we copy the picture once: 320 MB. Its WebP decoder keeps three more copies.
_MAX_PIXELS = 40_000_000
_MAX_WEBP_PIXELS = 20_000_000
_FORMATS = ("PNG", "JPEG", "WEBP")
_STRIP_PIXELS = 1_000_000
_ACCEPTED = "PNG, JPEG or WebP"
_MIN_SIDE = 32
# The video would show only a strip of a picture that is wider or taller: planning refuses the same.
_MAX_ASPECT = 4
# Pillow's decoders report damage with any of these.
_DAMAGE = (
    OSError, SyntaxError, ValueError, EOFError, TypeError, AttributeError, AssertionError, LookupError, ArithmeticError,
    struct.error, zlib.error,
)  # fmt: skip
_FIRST_BYTES = 64 * 1024

_EXPORT = "export it as JPEG or PNG"
_APPLE = "export it as JPEG, or have the iPhone take JPEG (Settings, Camera, Formats, Most Compatible)"
_DEVELOP = "develop it and export it as JPEG"
_FRAME = "save the picture of the speaker as PNG"


class OtherFormat(NamedTuple):
    """A picture format that is not accepted: its common name, and the remedy."""

    name: str
    remedy: str


# Patterns of the first bytes; the first match counts. None matches an accepted format.
_OTHER_FORMATS = {
    rb".{4}ftyp.{0,64}?avi[fs]": ("AVIF", _EXPORT),
    rb".{4}ftyp(hei[cxms]|hev[cxms]|mif1|msf1)": ("HEIC (HEIF), as Apple's cameras write it", _APPLE),
    rb".{4}ftypcrx |II\*\0.{4}CR|FUJIFILMCCD-RAW|IIRO|IIRS|MMOR|IIU\0": ("a raw photo of a camera", _DEVELOP),
    # TIFF with the tag DNGVersion.
    rb"II\*\0.*\x12\xc6\x01\0\x04\0\0\0|MM\0\*.*\xc6\x12\0\x01\0\0\0\x04": ("a raw photo (DNG)", _DEVELOP),
    rb"II[*+]\0|MM\0[*+]": ("TIFF, or a raw photo of a camera", _EXPORT),
    rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0": ("BMP", _EXPORT),
    rb"GIF8[79]a": ("GIF", _FRAME),
    rb"8BPS": ("a Photoshop file (PSD)", _EXPORT),
    rb"gimp xcf": ("a GIMP file (XCF)", _EXPORT),
    rb"(\xef\xbb\xbf)?\s*(?i:<(!doctype )?html)": ("a web page", "download the picture itself, and upload that"),
    rb"(\xef\xbb\xbf)?\s*<.{0,4096}?svg": ("SVG", _EXPORT),
    rb"\s*%PDF-": ("PDF", _EXPORT),
    rb"%!PS|\xc5\xd0\xd3\xc6": ("PostScript (EPS)", _EXPORT),
    rb"\xff\x0a|\0\0\0\x0cJXL ": ("JPEG XL", _EXPORT),
    rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51": ("JPEG 2000", _EXPORT),
    rb".{4}(ftyp|moov|mdat)|\x1a\x45\xdf\xa3|RIFF.{4}AVI ": ("a video", _FRAME),
    rb"\0\0[\x01\x02]\0": ("an icon (ICO)", _EXPORT),
    rb"PK\x03\x04": ("a ZIP archive or an office document", "upload the picture in it"),
}
_PATTERNS = [(re.compile(pattern, re.DOTALL), OtherFormat(*other)) for pattern, other in _OTHER_FORMATS.items()]


@dataclass(frozen=True)
class ImageInfo:
    """Size in pixels after the camera's rotation was applied, and a warning about the colours."""

    width: int
    height: int
    warning: str | None = None


def normalise_image(source: Path, png: Path) -> ImageInfo:
    """Write `source` upright, opaque and in 8-bit sRGB to `png`, with reproducible bytes and no metadata.

    Transparent parts become white. Raises PermanentError, in one sentence, if the file is empty, no such picture,
    damaged, animated, or its size cannot be used.
    """
    if source.stat().st_size == 0:
        raise PermanentError(f"The image {source.name} is empty (0 bytes): upload a {_ACCEPTED} picture.")
    if other := other_format(source):
        raise PermanentError(f"The image {source.name} is {other.name}: expected {_ACCEPTED}; {other.remedy}.")
    with tempfile.TemporaryFile(dir=png.parent) as pixels:
        plain, warning = _decode(source.name, pixels, split(source, pixels))
    plain.save(png, format="PNG")
    if warning:
        log.get_logger().warning("image_colours_as_srgb", image=source.name, reason=warning)
    return ImageInfo(*plain.size, warning)


def _decode(name: str, file: IO[bytes], metadata: Metadata) -> tuple[Image.Image, str | None]:
    """Return the picture, upright and in RGB, and a warning about its colours."""
    max_pixels = _MAX_PIXELS
    unreadable = f"The image {name} is not a readable picture (expected {_ACCEPTED})"
    try:
        with warnings.catch_warnings():
            # Our own bound follows; Pillow's error for a still larger picture becomes our message.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(file, formats=_FORMATS)
        with image:
            if image.format == "WEBP":
                max_pixels = _MAX_WEBP_PIXELS
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
        raise PermanentError(f"The image {name} is animated: upload a single picture of the speaker.")
    if min(image.size) < _MIN_SIDE:
        raise PermanentError(f"The image {name} has {size} pixels: expected at least {_MIN_SIDE} on each side.")
    if max(image.size) > _MAX_ASPECT * min(image.size):
        raise PermanentError(
            f"The image {name} has {size} pixels: expected a longer side of at most {_MAX_ASPECT} times the shorter "
            "one; crop the picture around the speaker."
        )


def _plain(image: Image.Image, found: Colours) -> Image.Image:
    """Return a new picture without the metadata that Pillow would write; made in strips to bound the memory."""
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


def other_format(path: Path) -> OtherFormat | None:
    """Return the format of the file by its first bytes if it is known and not accepted, else None."""
    with path.open("rb") as file:
        first = file.read(_FIRST_BYTES)
    return next((other for pattern, other in _PATTERNS if pattern.match(first)), None)
