"""Is the end of an upload there? Checks of the container that ffmpeg does not make.

ffmpeg plays a file that was cut off (an interrupted upload) to the cut and reports success, so a job would quietly make
a shorter video. Found here: WAV with less data than its header says, MP3 whose last frame or whose announced frames
(Xing header) are not there, Ogg whose last page is not whole. Not findable: an MP3 without Xing header, or an Ogg, cut
exactly between two frames or pages.
"""

import struct
from collections.abc import Iterator
from mmap import ACCESS_READ, mmap
from pathlib import Path

# kbit/s by 4-bit index, layer III: MPEG 1, then MPEG 2 and 2.5. Index 0 is "free format", 15 is forbidden.
_BITRATES_MPEG1 = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
_BITRATES_MPEG2 = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
_SAMPLE_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}
# Writers that cannot seek back (a recorder, a pipe) leave such a size behind: it says nothing.
_WAV_SIZE_UNKNOWN = 0x7FFFF000


def missing_end(path: Path, format_name: str) -> str | None:
    """What shows that the end of the file is missing, None if nothing does. `format_name` is ffprobe's."""
    check = {"wav": _wav_problem, "mp3": _mp3_problem, "ogg": _ogg_problem}.get(format_name)
    if check is None:
        return None
    with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as data:
        return check(data)


def _wav_problem(data: mmap) -> str | None:
    position = 12
    while position + 8 <= len(data):
        name, size = struct.unpack_from("<4sI", data, position)
        if name == b"data":
            present = len(data) - position - 8
            lacking = 0 < size < _WAV_SIZE_UNKNOWN and size > present
            return f"its header announces {size} bytes of sound, {present} are there" if lacking else None
        position += 8 + size + size % 2
    return None


def _mp3_problem(data: mmap) -> str | None:
    frames = _mp3_frames(data)
    first = next(frames, None)
    if first is None:
        return None
    announced = _xing_frames(data, *first)
    num_frames, end = 0 if announced else 1, first[0] + first[1]
    for start, size in frames:
        num_frames, end = num_frames + 1, start + size
    if end > len(data):
        return "its last MP3 frame is not whole"
    if announced and num_frames < announced:
        return f"its header announces {announced} MP3 frames, {num_frames} are there"
    return None


def _mp3_frames(data: mmap) -> Iterator[tuple[int, int]]:
    """(offset, size) of each frame; what is no frame (tags, padding) is stepped over."""
    position, kind = _after_id3(data), None
    while position + 4 <= len(data):
        header = int.from_bytes(data[position : position + 4], "big")
        size = _mp3_frame_size(header)
        same_stream = kind in {None, header & 0xFFFE0C00}
        # Sound can look like a header: the first one counts only if another follows it.
        if size and same_stream and (kind is not None or _mp3_frame_at(data, position + size)):
            kind = header & 0xFFFE0C00
            yield position, size
            position += size
        else:
            position = data.find(b"\xff", position + 1)
            if position < 0:
                return


def _mp3_frame_at(data: mmap, position: int) -> bool:
    return bool(_mp3_frame_size(int.from_bytes(data[position : position + 4], "big")))


def _mp3_frame_size(header: int) -> int:
    """Bytes of the layer III frame with this 32-bit header, 0 if it is none."""
    version, layer = header >> 19 & 3, header >> 17 & 3
    bitrate_index, rate_index, padding = header >> 12 & 15, header >> 10 & 3, header >> 9 & 1
    if header >> 21 != 0x7FF or version == 1 or layer != 1 or bitrate_index in {0, 15} or rate_index == 3:
        return 0
    bitrates, factor = (_BITRATES_MPEG1, 144000) if version == 3 else (_BITRATES_MPEG2, 72000)
    return factor * bitrates[bitrate_index] // _SAMPLE_RATES[version][rate_index] + padding


def _xing_frames(data: mmap, start: int, size: int) -> int:
    """Frames announced by the Xing/Info header in the first frame (itself not counted), 0 if there is none."""
    frame = data[start : start + size]
    for tag in (b"Xing", b"Info"):
        position = frame.find(tag)
        if 0 < position <= len(frame) - 12 and frame[position + 7] & 1:
            return int.from_bytes(frame[position + 8 : position + 12], "big")
    return 0


def _after_id3(data: mmap) -> int:
    if data[:3] != b"ID3" or len(data) < 10:
        return 0
    a, b, c, d = data[6:10]
    return 10 + (a << 21 | b << 14 | c << 7 | d)


def _ogg_problem(data: mmap) -> str | None:
    page = data.rfind(b"OggS")
    if page < 0:
        return None
    header_end = page + 27
    num_segments = data[header_end - 1] if header_end <= len(data) else 0
    body_start = header_end + num_segments
    whole = body_start <= len(data) and body_start + sum(data[header_end:body_start]) <= len(data)
    return None if whole else "its last Ogg page is not whole"
