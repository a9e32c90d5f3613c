"""Check that unsupported picture formats are refused by name."""

import struct
from pathlib import Path

import pytest
from PIL import Image

from s2v_tasks.errors import PermanentError
from s2v_tasks.media.image import normalise_image, other_format
from tests.unit.media.pictures import encoded, exif, jpeg, photo, png, segment


def brand(major: bytes, *compatible: bytes) -> bytes:
    content = major + bytes(4) + b"".join(compatible)
    return struct.pack(">I", len(content) + 8) + b"ftyp" + content + bytes(64)


@pytest.mark.parametrize(
    ("content", "name", "remedy"),
    [
        (brand(b"heic", b"mif1", b"heic"), "HEIC", "export it as JPEG, or have the iPhone take JPEG"),
        (brand(b"mif1", b"heic"), "HEIC", "export it as JPEG"),
        (brand(b"hevc", b"msf1"), "HEIC", "export it as JPEG"),
        (brand(b"avif", b"mif1"), "AVIF", "export it as JPEG or PNG"),
        (brand(b"mif1", b"miaf", b"avif"), "AVIF", "export it"),
        (encoded(photo(), "AVIF"), "AVIF", "export it"),
        (encoded(photo(), "TIFF"), "TIFF", "export it as JPEG or PNG"),
        (b"MM\0+\0\x08" + bytes(64), "TIFF", "export it"),
        (exif((0xC612, 1, 4, b"\1\4\0\0")), "a raw photo (DNG)", "develop it"),
        (exif((0x0100, 3, 1, bytes(4)), (0xC612, 1, 4, b"\1\6\0\0"), order=">"), "a raw photo (DNG)", "develop it"),
        (b"II*\0\x10\0\0\0CR\2\0" + bytes(64), "a raw photo", "develop it and export it as JPEG"),
        (brand(b"crx ", b"isom"), "a raw photo", "develop it"),
        (b"FUJIFILMCCD-RAW 0201" + bytes(64), "a raw photo", "develop it"),
        (b"IIRO\x08\0\0\0" + bytes(64), "a raw photo", "develop it"),
        (b"IIU\0\x18\0\0\0" + bytes(64), "a raw photo", "develop it"),
        (encoded(photo(), "BMP"), "BMP", "export it"),
        (encoded(photo(), "GIF"), "GIF", "save the picture of the speaker as PNG"),
        (b"GIF87a" + bytes(64), "GIF", "save the picture of"),
        (b"8BPS\0\1" + bytes(64), "a Photoshop file (PSD)", "export it"),
        (b"gimp xcf v011\0" + bytes(64), "a GIMP file (XCF)", "export it"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG", "export it"),
        (b"\xef\xbb\xbf\n<?xml version='1.0'?><!-- drawn --><svg/>", "SVG", "export it"),
        (b"<!DOCTYPE html><title>403</title><svg/>", "a web page", "download the picture itself"),
        (b"\n<HTML>", "a web page", "download the picture itself"),
        (encoded(photo(), "PDF"), "PDF", "export it"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", "PostScript (EPS)", "export it"),
        (b"\xc5\xd0\xd3\xc6" + bytes(64), "PostScript (EPS)", "export it"),
        (b"\xff\x0a" + bytes(64), "JPEG XL", "export it"),
        (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(64), "JPEG XL", "export it"),
        (encoded(photo(), "JPEG2000"), "JPEG 2000", "export it"),
        (b"\xff\x4f\xff\x51" + bytes(64), "JPEG 2000", "export it"),
        (brand(b"isom", b"mp42"), "a video", "save the picture of"),
        (b"\0\0\1\0mdat" + bytes(64), "a video", "save the picture of"),
        (b"\x1a\x45\xdf\xa3" + bytes(64), "a video", "save the picture of"),
        (b"RIFF\0\0\0\0AVI LIST", "a video", "save the picture of"),
        (encoded(photo(), "ICO"), "an icon (ICO)", "export it"),
        (b"PK\3\4" + bytes(64), "a ZIP archive", "upload the picture in it"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_known_format_is_named(content: bytes, name: str, remedy: str, tmp_path: Path) -> None:
    """The message names the format, whatever the name of the file is, and the remedy."""
    (tmp_path / "photo.jpg").write_bytes(content)
    with pytest.raises(PermanentError) as caught:
        normalise_image(tmp_path / "photo.jpg", tmp_path / "image.png")
    said, _, advice = str(caught.value).partition(": expected PNG, JPEG or WebP; ")
    assert said.startswith(f"The image photo.jpg is {name}")
    assert advice.startswith(remedy)
    assert "\n" not in advice


@pytest.mark.parametrize(
    "content",
    [
        jpeg(segment(0xFE, b"ftyp%PDF-")),
        png(image=Image.new("RGB", (64, 64))),
        encoded(photo(), "WEBP"),
        b"RIFF\0\0\0\0WAVEfmt ",
        b"BM, said the text",
        b"any text",
    ],
)
def test_readable_and_unknown_formats_are_not_named(content: bytes, tmp_path: Path) -> None:
    """Readable and unknown formats are left to the decoder."""
    (tmp_path / "photo.heic").write_bytes(content)
    assert other_format(tmp_path / "photo.heic") is None
