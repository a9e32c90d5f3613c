"""Read the orientation and the colour description of a picture file, and copy the file without metadata.

Metadata is often wrong, and sometimes forged. Pillow reads all of it when it opens a file and fails for some wrong
values. It therefore gets a copy of JPEG and PNG files without metadata, and this module reads the needed values.
"""

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from mmap import ACCESS_READ, mmap
from pathlib import Path
from shutil import copyfileobj
from typing import IO, Literal

from PIL import Image

from s2v_tasks.errors import PermanentError

_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
# Chunks of a PNG file that the decoder needs. An animation is refused, so its frames are not copied.
_PNG_PIXELS = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"}
_PNG_METADATA = {b"eXIf", b"iCCP", b"cICP", b"sRGB", b"gAMA", b"cHRM", b"acTL"}
_PNG_XMP = b"XML:com.adobe.xmp"
_PNG_RAW_EXIF = (b"Raw profile type exif", b"Raw profile type APP1")  # of ImageMagick and older programs
_HEXADECIMAL = re.compile(rb"\s*\w+\s+\d+\s+([0-9a-fA-F\s]*)")
_MAX_METADATA_BYTES = 8 * 1024**2  # colour profiles of printers have a few MB
_MAX_PARTS = 200_000  # chunks, segments and bytes between them; a picture of 40 megapixels may have 40,000 chunks
_MAX_SCANS = 100  # the decoder processes the whole picture for each; cameras and editors write 1 to 20
# Pillow holds the whole file in memory, and its metadata twice. The largest lossless picture has 60 MB.
_MAX_WEBP_BYTES = 64 * 1024**2
_MARKER_BEHIND_SCAN = re.compile(rb"\xff([\xc0-\xcf\xd9-\xfe])")
_EXIF_BYTES = 64 * 1024  # of one segment; longer EXIF continues in the next one
_MAX_ENTRIES = 4096  # of a directory in EXIF; usual ones have fewer than a hundred
_ORIENTATION_TAG = 0x0112
_INTEGER_BYTES = {1: 1, 3: 2, 4: 4, 6: 1, 8: 2, 9: 4}  # type of an entry → size of its number
_XMP_ORIENTATION = re.compile(rb"tiff:Orientation(?:\s*=\s*[\"']|>)\s*([1-8])")
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class Metadata:
    """Metadata as found in the file; nothing is checked."""

    exif: bytes = b""
    xmp: bytes = b""
    icc: bytes | None = None
    cicp: bytes | None = None
    is_srgb: bool = False
    gamma: int | None = None  # of gAMA: 100,000 times the exponent
    chromaticities: tuple[int, ...] | None = None  # of cHRM: 100,000 times x and y of white, red, green and blue
    is_animated: bool = False

    @property
    def upright(self) -> Image.Transpose | None:
        """Return the operation that turns the picture upright; None if it is, or without a valid orientation."""
        orientation = _exif_orientation(self.exif)
        if orientation is None and (found := _XMP_ORIENTATION.search(self.xmp)):
            orientation = int(found[1])
        return _UPRIGHT.get(orientation or 1)


def split(source: Path, pixels: IO[bytes]) -> Metadata:
    """Copy the parts of a JPEG or PNG file that the decoder needs, other files whole, and return the metadata.

    The copy goes to `pixels`. A damaged part is left out: the decoder reports it. Raises PermanentError for a file of
    too many pieces or scans, and for a WebP file that is too large.
    """
    with source.open("rb") as file:
        magic = file.read(8)
        file.seek(0)
        if magic == _PNG_MAGIC:
            found = _split_png(file, pixels)
        elif magic.startswith(b"\xff\xd8\xff"):
            found = _split_jpeg(file, pixels)
        elif magic.startswith(b"RIFF") and source.stat().st_size > _MAX_WEBP_BYTES:
            raise PermanentError(
                f"The image {source.name} has {source.stat().st_size} bytes: expected at most {_MAX_WEBP_BYTES} of a "
                "WebP file; export it as JPEG or PNG."
            )
        else:
            copyfileobj(file, pixels)
            found = Metadata()
    pixels.seek(0)
    return found


def _split_jpeg(file: IO[bytes], pixels: IO[bytes]) -> Metadata:
    """Leave out APPn and comments before the first scan, except JFIF and Adobe, which state the colour encoding."""
    exif, xmp = b"", b""
    profile: dict[int, bytes] = {}  # a long one is in several segments, numbered from 1
    pixels.write(b"\xff\xd8")
    file.seek(2)
    for marker, body in _segments(file):
        if marker == 0xE1 and body.startswith(b"Exif\0\0"):
            exif += body[6:] if len(exif) < _EXIF_BYTES else b""
        elif marker == 0xE1 and body.startswith(b"http://ns.adobe.com/xap/1.0/\0"):
            xmp = xmp or body
        elif marker == 0xE2 and body.startswith(b"ICC_PROFILE\0") and len(body) > 14:
            profile.setdefault(body[12], body[14:])
        elif marker < 0xE0 or _states_colour_encoding(marker, body):
            pixels.write(bytes([0xFF, marker]) + (len(body) + 2).to_bytes(2) + body)
    _refuse_many_scans(file)
    copyfileobj(file, pixels)
    return Metadata(exif=exif, xmp=xmp, icc=b"".join(part for _, part in sorted(profile.items())) or None)


def _segments(file: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    """Yield marker and content of each segment up to the first scan, the new position of `file`; skip other bytes."""
    previous = b""
    for _ in range(_MAX_PARTS):
        marker = file.read(1)
        if not marker:
            return
        if previous != b"\xff" or not 0xC0 <= marker[0] <= 0xFE or 0xD0 <= marker[0] <= 0xD9:
            previous = marker
            continue
        if marker[0] == 0xDA:
            file.seek(-2, 1)
            return
        yield marker[0], file.read(max(int.from_bytes(file.read(2)) - 2, 0))
        previous = b""
    raise _too_many(file, _MAX_PARTS, "pieces")


def _refuse_many_scans(file: IO[bytes]) -> None:
    """Raise PermanentError for more scans, from the position of `file` on, than cameras and editors write."""
    num_scans, position = 0, file.tell()
    with mmap(file.fileno(), 0, access=ACCESS_READ) as data:
        for _ in range(_MAX_PARTS):
            marker = _MARKER_BEHIND_SCAN.search(data, position)
            if marker is None or marker[1] == b"\xd9":
                return
            num_scans += marker[1] == b"\xda"
            if num_scans > _MAX_SCANS:
                break
            position = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2])
    raise _too_many(file, _MAX_SCANS, "scans")


def _states_colour_encoding(marker: int, body: bytes) -> bool:
    is_jfif = marker == 0xE0 and body.startswith(b"JFIF\0") and len(body) >= 14
    return is_jfif or (marker == 0xEE and body.startswith(b"Adobe") and len(body) >= 12)


def _split_png(file: IO[bytes], pixels: IO[bytes]) -> Metadata:
    """Copy the chunks with pixels; of each type of metadata the first chunk counts."""
    found: dict[bytes, bytes] = {}
    pixels.write(file.read(8))
    for _ in range(_MAX_PARTS):
        header = file.read(8)
        if len(header) < 8 or header[4:] == b"IEND":
            pixels.write(header + file.read(4))
            return _png_metadata(found)
        size, kind = int.from_bytes(header[:4]), header[4:]
        if kind in _PNG_PIXELS:
            pixels.write(header)
            _copy(file, pixels, size + 4)
            continue
        end = file.tell() + size + 4
        if size <= _MAX_METADATA_BYTES and kind in _PNG_METADATA:
            found.setdefault(kind, file.read(size))
        elif size <= _MAX_METADATA_BYTES and kind in {b"tEXt", b"zTXt", b"iTXt"}:
            key, _, text = file.read(size).partition(b"\0")
            if key == _PNG_XMP or key in _PNG_RAW_EXIF:
                found.setdefault(key, kind + text)
        file.seek(end)
    raise _too_many(file, _MAX_PARTS, "pieces")


def _too_many(file: IO[bytes], limit: int, parts: str) -> PermanentError:
    return PermanentError(
        f"The image {Path(file.name).name} has more than {limit} {parts}: expected a file as cameras and editors "
        "write it; save it again."
    )


def _copy(file: IO[bytes], pixels: IO[bytes], size: int) -> None:
    while size and (piece := file.read(min(size, 2**20))):
        pixels.write(piece)
        size -= len(piece)


def _png_metadata(found: dict[bytes, bytes]) -> Metadata:
    points = found.get(b"cHRM")
    exif = found.get(b"eXIf", b"")
    for key in _PNG_RAW_EXIF:
        exif = exif or _raw_exif(found.get(key, b""))
    return Metadata(
        exif=exif,
        xmp=_xmp(found.get(_PNG_XMP, b"")),
        icc=_inflated(found[b"iCCP"].partition(b"\0")[2][1:]) if b"iCCP" in found else None,
        cicp=found.get(b"cICP"),
        is_srgb=b"sRGB" in found,
        gamma=int.from_bytes(found[b"gAMA"][:4]) if b"gAMA" in found else None,
        chromaticities=None if points is None else _numbers(points),
        is_animated=int.from_bytes(found.get(b"acTL", b"")[:4]) > 1,
    )


def _numbers(chunk: bytes) -> tuple[int, ...]:
    return struct.unpack(f">{len(chunk) // 4}I", chunk[: len(chunk) // 4 * 4])


def _raw_exif(chunk: bytes) -> bytes:
    """Return EXIF from hexadecimal text behind a name and a length."""
    text = _inflated(chunk[5:]) if chunk.startswith(b"zTXt") else chunk[4:]
    raw = _HEXADECIMAL.match(text)
    digits = b"".join(raw[1].split()) if raw else b""
    return bytes.fromhex(digits[: len(digits) // 2 * 2].decode())


def _xmp(chunk: bytes) -> bytes:
    if not chunk.startswith(b"iTXt"):
        return chunk[4:]
    text = chunk[6:].split(b"\0", 2)[-1]
    return _inflated(text) if chunk[4:5] == b"\1" else text


def _inflated(data: bytes) -> bytes:
    """Decompress `data` up to a bound; return nothing if it is damaged."""
    try:
        return zlib.decompressobj().decompress(data, _MAX_METADATA_BYTES)
    except zlib.error:
        return b""


def _exif_orientation(exif: bytes) -> int | None:
    """Return the orientation in the first directory of EXIF, 1 to 8; None if there is none."""
    tiff = exif.removeprefix(b"Exif\0\0").removeprefix(b"Exif\0\0")
    order: dict[bytes, Literal["little", "big"]] = {b"II*\0": "little", b"MM\0*": "big"}
    endian = order.get(tiff[:4])
    if endian is None:
        return None

    def number(at: int, size: int) -> int:
        return int.from_bytes(tiff[at : at + size], endian)

    first = number(4, 4)
    for entry in range(first + 2, first + 2 + 12 * min(number(first, 2), _MAX_ENTRIES), 12):
        size = _INTEGER_BYTES.get(number(entry + 2, 2), 0)
        is_in_place = 0 < number(entry + 4, 4) * size <= 4
        value = number(entry + 8, size)
        if number(entry, 2) == _ORIENTATION_TAG and is_in_place and 1 <= value <= 8:
            return value
    return None
