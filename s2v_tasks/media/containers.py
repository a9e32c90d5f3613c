"""Is the end of an upload there, and does something surround the sound? What ffmpeg does not tell of a container.

ffmpeg plays a file that was cut off (an interrupted upload) to the cut and reports success, so a job would quietly make
a shorter video. Found here: WAV with less data than its header says, MP3 whose last frame or whose announced frames
(Xing header) are not there, Ogg whose last page is not whole. Not findable: an MP3 without Xing header, or an Ogg, cut
exactly between two frames or pages; an MP3 frame whose end was replaced by zeros.
"""

import struct
from mmap import ACCESS_READ, mmap
from pathlib import Path
from tempfile import mkdtemp

from s2v_tasks.media.mp3 import mp3_problem, mp3_without_junk

# Writers that cannot seek back (a recorder, a pipe) leave such a size behind: it says nothing.
_WAV_SIZE_UNKNOWN = 0x7FFFF000


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
            output.writelines(pieces)
    return copy


def _wav_problem(data: mmap) -> str | None:
    start, size = _wav_chunk(data, b"data")
    present = len(data) - start
    lacking = start and 0 < size < _WAV_SIZE_UNKNOWN and size > present
    return f"its header announces {size} bytes of sound, {present} are there" if lacking else None


def _wav_with_length(data: mmap) -> list[bytes] | None:
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
    return [b"RIFF", riff_size, data[8 : start - 4], data_size, data[start : start + whole]]


def _wav_chunk(data: mmap, wanted: bytes) -> tuple[int, int]:
    """(offset of the content, size as declared) of the first chunk of this name, (0, 0) if there is none."""
    position = 12
    while position + 8 <= len(data):
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
