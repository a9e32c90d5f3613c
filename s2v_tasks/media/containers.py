"""What a file of sound begins with, is its end there, and does something surround the sound?

ffmpeg takes a file for what its name says when its bytes say nothing; here the bytes alone count.

ffmpeg plays a file that was cut off (an interrupted upload) to the cut and reports success, so a job would quietly make
a shorter video. Found here: WAV with less data than its header says, MP3 whose last frame or whose announced frames
(Xing header) are not there, Ogg whose last page is not whole. Not findable: an MP3 without Xing header, or an Ogg, cut
exactly between two frames or pages; an MP3 frame whose end was replaced by zeros.
"""

import re
import struct
from mmap import ACCESS_READ, mmap
from pathlib import Path
from tempfile import mkdtemp

from s2v_tasks.media.mp3 import is_longer, leading_tag_bytes, mp3_problem, mp3_without_junk

# Writers that cannot seek back (a recorder, a pipe) leave such a size behind: it says nothing.
_WAV_SIZE_UNKNOWN = 0x7FFFF000
# Real files have a handful before their sound; each costs as much time as it is short.
_MOST_WAV_CHUNKS = 1000

# A pattern for the first bytes of a file: the demuxers of ffmpeg that may open it.
_BEGINNINGS = {
    rb"(RIFF|RF64|BW64)....WAVE": "wav",
    rb"riff\x2e\x91\xcf\x11": "w64",
    rb"fLaC": "flac",
    rb"OggS": "ogg",
    rb"....(ftyp|moov|mdat|wide|free|skip|pnot)": "mov",
    rb"\x1a\x45\xdf\xa3": "matroska",
    rb"FORM....AIF[FC]": "aiff",
    rb"caff": "caf",
    rb"#!AMR": "amr",
    rb"ID3|APETAGEX|\0*\xff[\xe2-\xff]": "mp3,aac,flac",
}
_BEGINNING_BYTES = 65536
_COPIED_BYTES = 1 << 20
_MOST_TAG_BYTES = 16 * 1024**2


def sound_formats(path: Path) -> str | None:
    """Comma list of ffmpeg's demuxers that may open the file, by its first bytes; None if it begins like no sound."""
    with path.open("rb") as file:
        beginning = file.read(_BEGINNING_BYTES)
    return next((formats for pattern, formats in _BEGINNINGS.items() if re.match(pattern, beginning, re.DOTALL)), None)


def too_much(path: Path, format_name: str, max_duration_seconds: float) -> str | None:
    """Why the file holds more than so much sound can need, None if it does not; told before it is read closely.

    `format_name`: the answer of `sound_formats` (tags are looked at before ffmpeg opens the file), then ffprobe's.
    """
    if not format_name.startswith(("mp3", "wav")):
        return None
    with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as data:
        if format_name == "wav":
            return None if _wav_chunk(data, b"data")[0] else f"has no sound in its first {_MOST_WAV_CHUNKS} chunks"
        if leading_tag_bytes(data) > _MOST_TAG_BYTES:
            return f"begins with more than {_MOST_TAG_BYTES} bytes of tags: remove its pictures and texts"
        if format_name == "mp3" and is_longer(data, max_duration_seconds, _MOST_TAG_BYTES):
            return f"holds more than {max_duration_seconds:g} s: shorten it or raise the limit (S2V_MAX_AUDIO_SECONDS)"
    return None


def missing_end(path: Path, format_name: str) -> str | None:
    """What shows that the end of the file is missing, None if nothing does. `format_name` is ffprobe's."""
    check = {"wav": _wav_problem, "mp3": mp3_problem, "ogg": _ogg_problem}.get(format_name)
    if check is None:
        return None
    with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as data:
        return check(data)


def without_junk(path: Path, format_name: str, folder: Path) -> Path:
    """The file as ffmpeg decodes it to the end: `path` itself, or a cleaned copy of the same name below `folder`.

    A WAV of unknown length gets its true one; an MP3 loses the tags and the padding behind and between its frames.
    Both would be damage to ffmpeg, which is told to be strict. The file must have passed `missing_end`.
    """
    clean = {"wav": _wav_with_length, "mp3": mp3_without_junk}.get(format_name)
    if clean is None:
        return path
    with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as data:
        pieces = clean(data)
        if pieces is None:
            return path
        copy = Path(mkdtemp(dir=folder)) / path.name  # apart: it may be called like any other file there
        with copy.open("wb") as output:
            for piece in pieces:
                output.write(data[piece] if isinstance(piece, slice) else piece)
    return copy


def _wav_problem(data: mmap) -> str | None:
    start, size = _wav_chunk(data, b"data")
    present = len(data) - start
    lacking = start and 0 < size < _WAV_SIZE_UNKNOWN and size > present
    return f"its header announces {size} bytes of sound, {present} are there" if lacking else None


def _wav_with_length(data: mmap) -> list[bytes | slice] | None:
    """Pieces of the file with its real sizes in the header; None if it has them, or is too large for any."""
    start, size = _wav_chunk(data, b"data")
    present = len(data) - start
    unknown = size == 0 or (size >= _WAV_SIZE_UNKNOWN and size > present)
    if data[:4] != b"RIFF" or not start or not unknown or not 0 < present < _WAV_SIZE_UNKNOWN:
        return None
    format_start, format_size = _wav_chunk(data, b"fmt ")
    block = int.from_bytes(data[format_start + 12 : format_start + 14], "little") if format_size >= 16 else 1
    whole = present - present % max(block, 1)
    riff_size, data_size = struct.pack("<I", start + whole - 8), struct.pack("<I", whole)
    return [b"RIFF", riff_size, slice(8, start - 4), data_size, *_slices(start, start + whole)]


def _slices(start: int, end: int) -> list[slice]:
    """The range in pieces that are small beside the file."""
    return [slice(at, min(end, at + _COPIED_BYTES)) for at in range(start, end, _COPIED_BYTES)]


def _wav_chunk(data: mmap, wanted: bytes) -> tuple[int, int]:
    """(offset of the content, size as declared) of the first chunk of this name, (0, 0) if there is none."""
    position = 12
    for _ in range(_MOST_WAV_CHUNKS):
        if position + 8 > len(data):
            break
        name, size = struct.unpack_from("<4sI", data, position)
        if name == wanted:
            return position + 8, size
        position += 8 + size + size % 2
    return 0, 0


def _ogg_problem(data: mmap) -> str | None:
    page = data.rfind(b"OggS")
    if page < 0:
        return None
    header_end = page + 27
    num_segments = data[header_end - 1] if header_end <= len(data) else 0
    body_start = header_end + num_segments
    whole = body_start <= len(data) and body_start + sum(data[header_end:body_start]) <= len(data)
    return None if whole else "its last Ogg page is not whole"
