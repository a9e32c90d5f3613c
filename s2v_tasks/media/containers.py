"""What a file of sound begins with, is its end there, and does something surround the sound?

ffmpeg takes a file for what its name says when its bytes say nothing; here the bytes alone count.

ffmpeg plays a file that was cut off (an interrupted upload) to the cut and reports success, and of joined files it
plays the first, so a job would quietly make a shorter video. Found here: wrong sizes in WAV, AIFF and CAF, MP3 whose
last frame or whose announced frames (Xing header) are not there, Ogg whose last page is not whole, and files that are
joined from several. Not findable: an MP3 without Xing header, or an Ogg, cut exactly between two frames or pages; an
MP3 frame whose end was replaced by zeros.
"""

import re
from mmap import ACCESS_READ, mmap
from pathlib import Path
from tempfile import mkdtemp

from s2v_tasks.errors import PermanentError
from s2v_tasks.media.chunks import Pieces, slices
from s2v_tasks.media.joined import files_in, join, ogg_page_end, refuse_too_many
from s2v_tasks.media.mp3 import MOST_TAG_BYTES, after_tags, is_longer, mp3_problem, mp3_without_junk
from s2v_tasks.media.probe import probe
from s2v_tasks.media.sounds import sounds

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
# What whole files have so many bytes behind their beginning; ffmpeg passes over those that stand behind other sound.
_MARKS = {"wav": (b"WAVEfmt ", 8), "ogg": (b"OggS\0\2" + bytes(8), 0), "mov": (b"ftypM4A ", 4)}
_CHUNKED = frozenset({"wav", "w64", "aiff", "caf"})


def sound_formats(path: Path) -> str | None:
    """Comma list of ffmpeg's demuxers that may open the file, by its first bytes; None if it begins like no sound."""
    with path.open("rb") as file:
        beginning = file.read(_BEGINNING_BYTES)
    return next((formats for pattern, formats in _BEGINNINGS.items() if re.match(pattern, beginning, re.DOTALL)), None)


def container_format(path: Path, formats: str, *, doing: str) -> str:
    """ffmpeg's name of the one demuxer that opens the file; `formats` is the answer of `sound_formats`."""
    if "," not in formats:
        return formats
    return probe(path, doing=doing, error=PermanentError, formats=formats).container.format_name


def too_much(path: Path, format_name: str, max_duration_seconds: float) -> str | None:
    """Why the file holds more than so much sound can need, None if it does not; told before it is read closely.

    `format_name`: the answer of `sound_formats` (tags are looked at before ffmpeg opens the file), then that of
    `container_format`.
    """
    if not format_name.startswith("mp3"):
        return None
    with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as data:
        if after_tags(data, 0) > MOST_TAG_BYTES:
            return f"begins with more than {MOST_TAG_BYTES} bytes of tags: remove its pictures and texts"
        if format_name == "mp3" and is_longer(data, max_duration_seconds, MOST_TAG_BYTES):
            return f"holds more than {max_duration_seconds:g} s: shorten it or raise the limit (S2V_MAX_AUDIO_SECONDS)"
    return None


def missing_end(path: Path, format_name: str) -> str | None:
    """What shows that sound is missing or unclear, None if nothing does. `format_name`: see `container_format`."""
    with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as data:
        if format_name in _CHUNKED:
            found = sounds(data)
            return found if isinstance(found, str) else None
        problems: list[str | None] = [_other_file(data, format_name)]
        if format_name == "mp3":
            problems.append(mp3_problem(data))
        if format_name == "ogg":
            problems += [_ogg_problem(data, part) for part in files_in(data, format_name)]
        return next(filter(None, problems), None)


def without_junk(path: Path, format_name: str, folder: Path, *, max_duration_seconds: float) -> Path:
    """The file as ffmpeg decodes it to the end: `path` itself, or a copy of the same name below `folder`.

    Wrong sizes in WAV, AIFF and CAF become the true ones, an MP3 loses the tags and the padding behind and between its
    frames, and a file that is joined from several becomes one. The file must have passed `missing_end`. Of joined files
    little more than `max_duration_seconds` is kept.
    """
    with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as data:
        files = _files(data, format_name)
        refuse_too_many(files, path.name)
        copies = [_written(data, pieces, folder, path.name) for pieces in files]
    if len(copies) < 2:
        return copies[0] if copies else path
    joined = _place(folder, path.name)
    join(copies, joined, max_duration_seconds=max_duration_seconds)
    return joined


def _files(data: mmap, format_name: str) -> list[Pieces]:
    """The pieces of each file that must be written; empty if the file is good as it is."""
    if format_name == "mp3":
        frames = mp3_without_junk(data)
        return [list(frames)] if frames else []
    if format_name in _CHUNKED:
        found = sounds(data)
        if isinstance(found, str) or (len(found) == 1 and found[0].as_declared):
            return []
        return [sound.pieces() for sound in found]
    parts = files_in(data, format_name)
    return [] if parts == [slice(0, len(data))] else [list(slices(part.start, part.stop)) for part in parts]


def _written(data: mmap, pieces: Pieces, folder: Path, name: str) -> Path:
    copy = _place(folder, name)
    with copy.open("wb") as output:
        for piece in pieces:
            output.write(data[piece] if isinstance(piece, slice) else piece)
    return copy


def _place(folder: Path, name: str) -> Path:
    return Path(mkdtemp(dir=folder)) / name  # apart: it may be called like any other file there


def _other_file(data: mmap, format_name: str) -> str | None:
    """Return what says that a file of another kind is joined to this one, None if none is."""
    for name, (mark, mark_at) in _MARKS.items():
        position = data.find(mark) - mark_at
        if name != format_name and position >= 0:
            return f"a file of another kind ({name}) begins at byte {position}"
    return None


def _ogg_problem(data: mmap, part: slice) -> str | None:
    page = data.rfind(b"OggS", part.start, part.stop)
    if page < 0 or (page + 27 <= part.stop and ogg_page_end(data, page) <= part.stop):
        return None
    return "its last Ogg page is not whole" if part.stop == len(data) else f"its Ogg page at byte {page} is not whole"
