"""Containers that state the sizes of their parts, MP4, Matroska and Ogg: is a part of them lost?

ffmpeg reads on behind a part that is lost or damaged, and the time stamps then have a gap, as a muted microphone leaves
one. Only where nothing is lost a gap is silence.
"""

from mmap import ACCESS_READ, mmap
from pathlib import Path

# Hours of sound and picture have fewer. A file with more cannot be checked, nor played, in a few seconds.
MOST_BOXES = 200_000
_MOST_PARTS = 2_000_000
_MP4_PARTS = (b"moov", b"mdat", b"moof")
_EBML_CLUSTER = 0x1F43B675


def lost_part(path: Path, format_name: str) -> str | None:
    """What shows that a part of the file is lost, None if nothing does. `format_name` is ffprobe's."""
    checks = {"mov": _mp4_problem, "matroska": _matroska_problem, "ogg": _ogg_problem}
    check = checks.get(format_name.partition(",")[0])
    if check is None:
        return None
    with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as data:
        return check(data)


def _mp4_problem(data: mmap) -> str | None:
    """A box that holds sound or its index is larger than the file."""
    position = 0
    for _ in range(MOST_BOXES):
        size, name = int.from_bytes(data[position : position + 4], "big"), data[position + 4 : position + 8]
        if size == 1:
            size = int.from_bytes(data[position + 8 : position + 16], "big")
        if position + size > len(data) and name in _MP4_PARTS:
            return f"its {name.decode()} box announces {size} bytes, {len(data) - position} are there"
        if size < 8:  # 0: to the end of the file; others are none
            return None
        position += size
    return f"it is in more than {MOST_BOXES} boxes"


def _matroska_problem(data: mmap) -> str | None:
    """The segment is larger than the file, or its elements, and those of its clusters, do not follow one another."""
    head_size, position = _number(data, _number(data, 0)[1], is_size=True)
    size, position = _number(data, _number(data, position + (head_size or 0))[1], is_size=True)
    end = len(data) if size is None else position + size
    if end > len(data):
        return f"its segment announces {size} bytes, {len(data) - position} are there"
    for _ in range(_MOST_PARTS):
        if position >= end:
            return None
        if data[position] == 0:
            return f"at byte {position} there is no element"
        name, content = _number(data, position)
        length, content = _number(data, content, is_size=True)
        # A recorder leaves the sizes of clusters open; what they hold is looked at like what stands beside them.
        position = content if name == _EBML_CLUSTER else content + (length or 0)
        if position > end and size is not None:
            return f"its last element announces {length} bytes, {end - content} are there"
    return f"it is in more than {_MOST_PARTS} elements"


def _ogg_problem(data: mmap) -> str | None:
    """Numbered pages are missing."""
    position, last = 0, dict[bytes, int]()
    for _ in range(_MOST_PARTS):
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
    return f"it is in more than {_MOST_PARTS} pages"


def _number(data: mmap, position: int, *, is_size: bool = False) -> tuple[int | None, int]:
    """(variable-length number of EBML, where it ends); None for a size whose bits are all set: open."""
    first = data[position] if position < len(data) else 0
    length = 9 - first.bit_length()
    value = int.from_bytes(data[position : position + length], "big")
    if not is_size:
        return value, position + length
    mask = (1 << 7 * length) - 1
    return (None if value & mask == mask else value & mask), position + length
