"""Formats that people upload as pictures and that are none of ours, told by their first bytes, not by a name."""

import re
from pathlib import Path
from typing import NamedTuple

_FIRST_BYTES = 64 * 1024
_EXPORT = "export it as JPEG or PNG"
_APPLE = "export it as JPEG, or have the iPhone take JPEG (Settings, Camera, Formats, Most Compatible)"
_DEVELOP = "develop it and export it as JPEG"
_FRAME = "save the one picture that shall speak as PNG"


class OtherFormat(NamedTuple):
    """A format as people call it, and what to do with such a file."""

    name: str
    remedy: str


# The first that matches counts. None matches the formats that are read.
_FORMATS = {
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
_PATTERNS = [(re.compile(pattern, re.DOTALL), OtherFormat(*told)) for pattern, told in _FORMATS.items()]


def other_format(path: Path) -> OtherFormat | None:
    """What the file is by its first bytes, if that is a known format of which no picture is read here."""
    with path.open("rb") as file:
        first = file.read(_FIRST_BYTES)
    return next((other for pattern, other in _PATTERNS if pattern.match(first)), None)
