"""Check the structure of MP4, Matroska and Ogg files, and find the boundaries of concatenated files.

ffmpeg skips a lost or damaged part and continues. The time stamps then have a gap, as after a muted microphone. A gap
is treated as silence only if the structure of the file is complete.
"""

import re
import struct
from collections.abc import Iterator
from itertools import islice, pairwise
from mmap import ACCESS_READ, mmap
from pathlib import Path

from s2v_tasks.media.mp3 import before_tags

MAX_FILES = 100
# Hours of audio and video have fewer. A file with more cannot be checked, nor played, in a few seconds.
_MAX_BOXES = 200_000
_MAX_PARTS = 2_000_000
_MAX_BEGINNINGS = 10_000
_BOX = struct.Struct(">I4s")
_MP4_PARTS = (b"moov", b"mdat", b"moof")
_EBML_CLUSTER = 0x1F43B675
# Byte patterns that only the beginning of a file has.
_BEGINNINGS = {
    "ogg": re.compile(rb"OggS\0[\x02\x03\x06\x07]\0{8}"),  # first page of a stream
    "flac": re.compile(rb"fLaC[\0\x80]\0\0\x22"),
    "matroska": re.compile(rb"\x1a\x45\xdf\xa3.{1,48}\x42\x82.(?:webm|matroska)", re.DOTALL),
    "amr": re.compile(rb"#!AMR(?:-WB)?\n"),
}


def lost_part(path: Path, format_name: str) -> str | None:
    """Return the evidence that a part of the file is lost, None if there is none. `format_name` is ffprobe's."""
    checks = {"mov": _mp4_problem, "matroska": _matroska_problem, "ogg": _ogg_problem}
    check = checks.get(format_name.partition(",")[0])
    if check is None:
        return None
    with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as data:
        return check(data)


def file_boundaries(data: mmap, format_name: str) -> list[slice]:
    """Return the byte range of each concatenated file, usually of one; at most one more than `MAX_FILES`.

    `format_name` is that of `container_format`. A FLAC file ends before the tags and the padding behind it, which its
    decoder would report as damage.
    """
    joints = _second_boxes(data) if format_name == "mov" else islice(_beginnings(data, format_name), 1, None)
    files = [slice(start, end) for start, end in pairwise([0, *islice(joints, MAX_FILES), len(data)])]
    if format_name != "flac":
        return files
    return [slice(file.start, before_tags(data, file.start, file.stop)) for file in files]


def ogg_page_end(data: mmap, page: int) -> int:
    """Return where the Ogg page at byte `page` should end; this may be behind the end of the file."""
    header_end = page + 27
    num_segments = data[header_end - 1] if header_end <= len(data) else 0
    return header_end + num_segments + sum(data[header_end : header_end + num_segments])


def _mp4_problem(data: mmap) -> str | None:
    """Return a message if a box with media data or its index is larger than the file."""
    position = 0
    for _ in range(_MAX_BOXES):
        size, name = int.from_bytes(data[position : position + 4], "big"), data[position + 4 : position + 8]
        if size == 1:
            size = int.from_bytes(data[position + 8 : position + 16], "big")
        if position + size > len(data) and name in _MP4_PARTS:
            return f"its {name.decode()} box states {size} bytes, but {len(data) - position} exist"
        if size < 8:  # 0 means: to the end of the file; other sizes are invalid
            return None
        position += size
    return f"it has more than {_MAX_BOXES} boxes"


def _matroska_problem(data: mmap) -> str | None:
    """Return a message if the segment is larger than the file, or its elements do not follow one another."""
    head_size, position = _ebml_number(data, _ebml_number(data, 0)[1], is_size=True)
    size, position = _ebml_number(data, _ebml_number(data, position + (head_size or 0))[1], is_size=True)
    end = len(data) if size is None else position + size
    if end > len(data):
        return f"its segment states {size} bytes, but {len(data) - position} exist"
    for _ in range(_MAX_PARTS):
        if position >= end:
            return None
        if data[position] == 0:
            return f"at byte {position} there is no element"
        name, content = _ebml_number(data, position)
        length, content = _ebml_number(data, content, is_size=True)
        # A recorder leaves the sizes of clusters open: elements in a cluster are checked like elements outside it.
        position = content if name == _EBML_CLUSTER else content + (length or 0)
        if position > end and size is not None:
            return f"its last element states {length} bytes, but {end - content} exist"
    return f"it has more than {_MAX_PARTS} elements"


def _ogg_problem(data: mmap) -> str | None:
    """Return a message if the sequence numbers of the pages have a gap."""
    position, last = 0, dict[bytes, int]()
    for _ in range(_MAX_PARTS):
        position = data.find(b"OggS", position)
        header = data[position : position + 27]
        if position < 0 or len(header) < 27:
            return None
        serial, number, begins = header[14:18], int.from_bytes(header[18:22], "little"), header[5] & 2
        missing = 0 if begins or serial not in last else number - last[serial] - 1
        if missing:
            return f"its Ogg pages do not follow one another before byte {position}"
        last[serial] = number
        lengths = data[position + 27 : position + 27 + header[26]]
        position += 27 + len(lengths) + sum(lengths)
    return f"it has more than {_MAX_PARTS} pages"


def _ebml_number(data: mmap, position: int, *, is_size: bool = False) -> tuple[int | None, int]:
    """Return the variable-length number of EBML and where it ends; None for an open size, whose bits are all set."""
    first = data[position] if position < len(data) else 0
    length = 9 - first.bit_length()
    value = int.from_bytes(data[position : position + length], "big")
    if not is_size:
        return value, position + length
    mask = (1 << 7 * length) - 1
    return (None if value & mask == mask else value & mask), position + length


def _beginnings(data: mmap, format_name: str) -> Iterator[int]:
    """Yield where a file of this format begins."""
    beginning, end = _BEGINNINGS.get(format_name), -1
    for match in islice(beginning.finditer(data), _MAX_BEGINNINGS) if beginning else ():
        # The first pages of multiplexed streams follow each other directly.
        if format_name != "ogg" or match.start() != end:
            yield match.start()
        end = ogg_page_end(data, match.start())


def _second_boxes(data: mmap) -> Iterator[int]:
    """Yield where an MP4 begins behind a complete one."""
    position, has_index = 0, False
    for _ in range(_MAX_BOXES):
        if position + _BOX.size > len(data):
            return
        size, name = _BOX.unpack_from(data, position)
        if size == 1:
            size = int.from_bytes(data[position + 8 : position + 16], "big")
        if name == b"ftyp" and has_index:
            yield position
            has_index = False
        has_index = has_index or name == b"moov"
        if size < _BOX.size:
            return
        position += size
