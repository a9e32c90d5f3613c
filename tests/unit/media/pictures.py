"""Picture files that are built by hand."""

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"


def photo(width: int = 60, height: int = 40) -> Image.Image:
    """A picture that every rotation changes."""
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x * 4 % 256, y * 6 % 256, (x + y) % 256], axis=-1).astype(np.uint8))


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


def jpeg(*segments: bytes, image: Image.Image | None = None) -> bytes:
    """Return a JPEG file with more segments after its first marker."""
    plain = encoded(image or photo(), "JPEG", quality=95)
    return plain[:2] + b"".join(segments) + plain[2:]


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(*chunks: bytes, image: Image.Image | None = None, at_end: bool = False) -> bytes:
    """Return a PNG file with more chunks after its header or before its end."""
    plain = encoded(image or photo(), "PNG")
    place = len(plain) - 12 if at_end else 33
    return plain[:place] + b"".join(chunks) + plain[place:]


def exif(*entries: tuple[int, int, int, bytes], order: str = "<") -> bytes:
    """Return a first directory of EXIF with entries of tag, type, count and four bytes."""
    head = b"II*\0" if order == "<" else b"MM\0*"
    listed = b"".join(struct.pack(f"{order}HHI", *entry[:3]) + entry[3] for entry in entries)
    return head + struct.pack(f"{order}IH", 8, len(entries)) + listed + bytes(4)


def oriented(value: int, order: str = "<") -> bytes:
    return exif((0x0112, 3, 1, struct.pack(f"{order}HH", value, 0)), order=order)
