"""Parse the frames of an MP3 file: find lost frames, and the frames between tags and padding.

A file may be several concatenated MP3 files: each part has its own tags and its own Xing header. Libraries and ffprobe
do not report lost frames: docs/adr/0018-own-code-instead-of-libraries.md.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, pairwise
from math import ceil
from mmap import mmap

# kbit/s by 4-bit index, layer III: MPEG 1, then MPEG 2 and 2.5. Index 0 is "free format", 15 is forbidden.
_BITRATES_MPEG1 = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
_BITRATES_MPEG2 = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
_SAMPLE_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}
_HEADER = re.compile(rb"\xff[\xe2\xe3\xf2\xf3\xfa\xfb][\x10-\xef]")
_ZEROS = re.compile(rb"\0*")
# A tag, or more zeros than audio ends with.
_LATE_TAG = re.compile(rb"ID3[\x02-\x04]\0.[\0-\x7f]{4}|TAG|APETAGEX|\0{64}", re.DOTALL)
MAX_TAG_BYTES = 16 * 1024**2
_MAX_LATE_TAGS = 1000
_HEADER_BYTES = 4
# An interrupted download can have its final size, with zeros in place of audio; real padding is short.
_MAX_PADDING_BYTES = 65536
_MAX_BYTES_PER_SECOND = 40_000  # 320 kbit/s
_MAX_FRAMES_PER_SECOND = 48_000 / 1152  # equal to 24,000 / 576


@dataclass(frozen=True)
class _Frame:
    """Bytes `start` to `end` of the file; frames of one `kind` share sample rate and mono or stereo."""

    start: int
    end: int
    kind: tuple[int, bool]
    # Frames that a Xing/Info header in this frame states (itself not counted); None: the frame holds audio.
    announced: int | None


def mp3_problem(data: mmap) -> str | None:
    """Return the evidence that audio is missing or damaged; None if there is none, or no layer III frame."""
    frames = list(_frames(data))
    if not frames:
        return None
    end = frames[-1].end
    if end > len(data) or (0 < len(data) - end < _HEADER_BYTES and data[end] == 0xFF):
        return "its last MP3 frame is not whole"
    for before, after in pairwise(frames):
        if before.kind != after.kind:
            return f"it is joined from unlike MP3 files (sample rate or channels change at byte {after.start})"
        if not _joint(data, before, after):
            return f"bytes {before.end} to {after.start} are not MP3 frames"
    announced = 0
    for part in _parts(frames):
        announced, num_frames = part[0].announced or 0, sum(frame.announced is None for frame in part)
        if num_frames < announced:
            return f"its header states {announced} MP3 frames, but {num_frames} exist"
    if not announced and len(data) - end > _MAX_PADDING_BYTES and _after_tag(data, end) == end:
        return f"its last {len(data) - end} bytes are not MP3 frames"
    return None


def after_tags(data: mmap, position: int) -> int:
    """Return the end of the tags and zeros that begin at `position`. The search stops behind `MAX_TAG_BYTES`."""
    start = position
    while position - start <= MAX_TAG_BYTES and (end := _after_zeros(data, _after_tag(data, position))) != position:
        position = end
    return position


def before_tags(data: mmap, start: int, end: int) -> int:
    """Return where the tags and zeros that extend to `end` begin; up to 63 zeros count as audio."""
    position = max(start, end - MAX_TAG_BYTES)
    for match in islice(_LATE_TAG.finditer(data, position, end), _MAX_LATE_TAGS):
        if match.start() < position:  # in a row of tags that was passed already
            continue
        position = after_tags(data, match.start())
        if position >= end:
            return match.start()
    return end


def is_longer(data: mmap, seconds: float) -> bool:
    """Return True if there are more frames than in `seconds`, or more bytes than these and their tags can have."""
    if len(data) > seconds * _MAX_BYTES_PER_SECOND + MAX_TAG_BYTES:
        return True
    max_frames = ceil(seconds * _MAX_FRAMES_PER_SECOND) + 1  # and a Xing header
    return next(islice(_frames(data), max_frames, None), None) is not None


def mp3_without_junk(data: mmap) -> list[slice] | None:
    """Return the pieces of the file without bytes behind and between its frames; None if there are no such bytes."""
    frames = list(_frames(data))
    if not frames:
        return None
    # Xing headers of later files would be decoded as silence; the first one states the encoder's delay.
    audio = [slice(f.start, f.end) for f in frames if f.announced is None or f is frames[0]]
    pieces = [slice(0, _after_tag(data, 0)), *audio]
    return pieces if sum(piece.stop - piece.start for piece in pieces) < len(data) else None


def _frames(data: mmap) -> Iterator[_Frame]:
    frame = _found_frame(data, 0)
    while frame is not None:
        yield frame
        following = _frame_at(data, frame.end)
        # Behind a gap, audio and other bytes can look like a header.
        frame = following if following and following.kind == frame.kind else _found_frame(data, frame.end)


def _found_frame(data: mmap, position: int) -> _Frame | None:
    """Return the first frame, from `position` on and behind tags, that is followed by another one of its kind."""
    for match in _HEADER.finditer(data, after_tags(data, position)):
        frame = _frame_at(data, match.start())
        following = _frame_at(data, frame.end) if frame else None
        if frame and following and frame.kind == following.kind:
            return frame
    return None


def _frame_at(data: mmap, start: int) -> _Frame | None:
    header = int.from_bytes(data[start : start + _HEADER_BYTES], "big")
    size = _frame_size(header)
    if not size:
        return None
    return _Frame(start, start + size, (header & 0xFFFE0C00, header >> 6 & 3 == 3), _announced(data, start))


def _frame_size(header: int) -> int:
    """Return the size in bytes of the layer III frame with this 32-bit header, 0 for other headers."""
    version, layer = header >> 19 & 3, header >> 17 & 3
    bitrate_index, rate_index, padding = header >> 12 & 15, header >> 10 & 3, header >> 9 & 1
    if header >> 21 != 0x7FF or version == 1 or layer != 1 or bitrate_index in {0, 15} or rate_index == 3:
        return 0
    bitrates, factor = (_BITRATES_MPEG1, 144000) if version == 3 else (_BITRATES_MPEG2, 72000)
    return factor * bitrates[bitrate_index] // _SAMPLE_RATES[version][rate_index] + padding


def _announced(data: mmap, start: int) -> int | None:
    beginning = data[start : start + 50]  # frame header, at most 34 bytes of side information, the Xing header
    position = max(beginning.find(b"Xing"), beginning.find(b"Info"))
    if position < 0:
        return None
    # Shorter than four bytes each if the file ends here.
    flags, number = beginning[position + 4 : position + 8], beginning[position + 8 : position + 12]
    return int.from_bytes(number) if int.from_bytes(flags) & 1 else 0


def _parts(frames: list[_Frame]) -> list[list[_Frame]]:
    """Return the frames of each concatenated file, as far as Xing headers mark a beginning."""
    parts: list[list[_Frame]] = []
    for frame in frames:
        if not parts or frame.announced is not None:
            parts.append([])
        parts[-1].append(frame)
    return parts


def _joint(data: mmap, before: _Frame, after: _Frame) -> bool:
    """Return True if only tags and padding separate the two. Zeros alone, before no new file, are lost audio."""
    if before.end == after.start:
        return True
    only_zeros = _after_zeros(data, before.end) == after.start
    return after_tags(data, before.end) == after.start and (not only_zeros or after.announced is not None)


def _after_zeros(data: mmap, position: int) -> int:
    match = _ZEROS.match(data, position)
    return match.end() if match else position


def _after_tag(data: mmap, position: int) -> int:
    """Return the end of the ID3v2, ID3v1 or APE tag that begins at `position`, else `position`; at most the file's."""
    head, size = data[position : position + 32], 0
    if head[:3] == b"ID3" and len(head) >= 10:
        a, b, c, d = head[6:10]
        size = 10 + (a << 21 | b << 14 | c << 7 | d) + (10 if head[5] & 0x10 else 0)
    elif head[:3] == b"TAG":
        size = 128
    elif head[:8] == b"APETAGEX" and len(head) == 32:
        # The size counts items and footer. A footer (no header flag) is the last part of its tag.
        size = 32 + (int.from_bytes(head[12:16], "little") if head[23] & 0x20 else 0)
    return min(position + size, len(data))
