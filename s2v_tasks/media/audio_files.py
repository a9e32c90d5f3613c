"""Recognise uploaded audio files by their bytes, find lost ends, and write a copy that ffmpeg decodes completely.

ffmpeg decodes a truncated file (an interrupted upload) up to the cut and reports success. Of concatenated files it
decodes the first. A job would then make a shorter video without a warning. This module detects: wrong sizes in WAV,
AIFF and CAF; an MP3 with an incomplete last frame or with fewer frames than in its Xing header; an Ogg file with an
incomplete last page; concatenated files. It cannot detect: an MP3 without Xing header, or an Ogg file, that is cut
exactly between two frames or pages; an MP3 frame whose end was replaced by zeros.

File names are ignored: ffmpeg would trust the name of a file whose bytes it does not recognise.
"""

import re
from collections.abc import Iterator, Sized
from dataclasses import dataclass
from fractions import Fraction
from mmap import ACCESS_READ, mmap
from pathlib import Path
from tempfile import mkdtemp

import numpy as np

from s2v_tasks.errors import PermanentError
from s2v_tasks.media.container_structure import MAX_FILES, file_boundaries, lost_part, ogg_page_end
from s2v_tasks.media.ffmpeg import AUDIO_FORMATS, feed, file_url, pipe_input, read_chunks, uploaded_input
from s2v_tasks.media.mp3 import MAX_TAG_BYTES, after_tags, is_longer, mp3_problem, mp3_without_junk
from s2v_tasks.media.probe import Gap, Stream, Timeline, probe, read_timeline
from s2v_tasks.media.wav_chunks import Pieces, slices
from s2v_tasks.media.wav_scan import find_audio

LENGTH_TOLERANCE_SECONDS = Fraction(1, 10)  # by which the decoded audio may be shorter than the file states
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
# Bytes near the beginning of a whole file, and their offset in it. ffmpeg skips such a file behind other audio.
_MARKS = {"wav": (b"WAVEfmt ", 8), "ogg": (b"OggS\0\2" + bytes(8), 0), "mov": (b"ftypM4A ", 4)}
_CHUNKED = frozenset({"wav", "w64", "aiff", "caf"})
_CHUNK_SAMPLES = 1 << 18
_SAMPLE_BYTES = 4
_LENGTH_UNKNOWN_IN = frozenset({"amr"})  # its container states an estimate


def audio_formats(path: Path) -> str | None:
    """Return the ffmpeg demuxers (comma list) that may open the file, by its first bytes; None for no audio file."""
    with path.open("rb") as file:
        beginning = file.read(_BEGINNING_BYTES)
    return next((formats for pattern, formats in _BEGINNINGS.items() if re.match(pattern, beginning, re.DOTALL)), None)


def container_format(path: Path, formats: str, *, doing: str) -> str:
    """Return ffmpeg's name of the one demuxer that opens the file; `formats` is the answer of `audio_formats`."""
    if "," not in formats:
        return formats
    return probe(path, doing=doing, error=PermanentError, formats=formats).container.format_name


def too_much(path: Path, format_name: str, max_duration_seconds: float) -> str | None:
    """Return a message if the file is too long or has too many tags, else None. Nothing is decoded.

    `format_name`: the answer of `audio_formats` (tags are checked before ffmpeg opens the file), then that of
    `container_format`.
    """
    if not format_name.startswith("mp3"):
        return None
    with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as data:
        if after_tags(data, 0) > MAX_TAG_BYTES:
            return f"begins with more than {MAX_TAG_BYTES} bytes of tags: remove its pictures and texts"
        if format_name == "mp3" and is_longer(data, max_duration_seconds):
            return f"holds more than {max_duration_seconds:g} s: shorten it or raise the limit (S2V_MAX_AUDIO_SECONDS)"
    return None


def missing_end(path: Path, format_name: str) -> str | None:
    """Return the evidence that audio is missing or ambiguous, None if there is none.

    `format_name`: see `container_format`.
    """
    with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as data:
        if format_name in _CHUNKED:
            found = find_audio(data)
            return found if isinstance(found, str) else None
        problems: list[str | None] = [_other_file(data, format_name)]
        if format_name == "mp3":
            problems.append(mp3_problem(data))
        if format_name == "ogg":
            problems += [_ogg_problem(data, part) for part in file_boundaries(data, format_name)]
        return next(filter(None, problems), None)


def decodable_copy(path: Path, format_name: str, folder: Path, *, max_duration_seconds: float) -> Path:
    """Return a file that ffmpeg decodes to the end: `path` itself, or a copy of the same name below `folder`.

    The copy of a WAV, AIFF or CAF has true sizes, that of an MP3 has no tags or padding behind and between its frames,
    and concatenated files become one. The file must have passed `missing_end`. Of concatenated files little more than
    `max_duration_seconds` is kept.
    """
    with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as data:
        files = _files(data, format_name)
        _refuse_too_many(files, path.name)
        copies = [_written(data, pieces, folder, path.name) for pieces in files]
    if len(copies) < 2:
        return copies[0] if copies else path
    joined = _new_path(folder, path.name)
    concatenate(copies, joined, max_duration_seconds=max_duration_seconds)
    return joined


def concatenate(files: list[Path], output: Path, *, max_duration_seconds: float) -> None:
    """Decode the files one after the other into one float WAV with the highest of their sample rates.

    Raises PermanentError if one is damaged. At most one second more than `max_duration_seconds` is written.
    """
    name = output.name
    parts = [_part(path, f"{name} (file {k} of {len(files)} in it)") for k, path in enumerate(files, start=1)]
    streams = [part.stream for part in parts]
    sample_rate, channels = max(each.sample_rate for each in streams), max(each.channels for each in streams)
    if not {each.channels for each in streams} <= {1, channels}:
        several = ", ".join(str(each.channels) for each in streams)
        raise PermanentError(f"The speech {name} is joined from files of {several} channels: export it as one.")
    raw = pipe_input(format="f32le", ar=sample_rate, ac=channels).output(
        file_url(output), format="wav", acodec="pcm_f32le", rf64="auto"
    )

    def samples() -> Iterator[bytes]:
        left = max_duration_seconds + 1
        for part in parts:
            if left > 0:
                for chunk in part.samples(sample_rate, channels, left):
                    yield chunk
                    left -= len(chunk) / (channels * _SAMPLE_BYTES * sample_rate)

    feed(raw, samples(), doing=f"joining {name}", error=PermanentError)


@dataclass(frozen=True)
class _Part:
    """One of several concatenated files; `name` says in messages which one of which speech."""

    path: Path
    name: str
    format_name: str
    stream: Stream
    declared: Fraction

    def samples(self, sample_rate: int, channels: int, max_seconds: float) -> Iterator[bytes]:
        """Yield float samples of the first `max_seconds` at this rate; mono is copied to all `channels`."""
        output = uploaded_input(self.path, AUDIO_FORMATS, t=max_seconds)["a:0"].output(
            "pipe:1", format="f32le", acodec="pcm_f32le", ar=sample_rate
        )
        doing, width = f"The speech {self.name} is damaged: decoding it", self.stream.channels
        chunks = read_chunks(output, _CHUNK_SAMPLES * width * _SAMPLE_BYTES, doing=doing, error=PermanentError)
        decoded = (np.frombuffer(chunk, np.float32).reshape(-1, width) for chunk in chunks)
        num_samples = 0
        for samples in self._gaps(sample_rate, max_seconds).fill(decoded):
            num_samples += len(samples)
            yield np.broadcast_to(samples, (len(samples), channels)).tobytes()
        seconds = Fraction(num_samples, sample_rate)
        if seconds < min(self.declared, Fraction(max_seconds)) - LENGTH_TOLERANCE_SECONDS:
            raise PermanentError(
                f"The speech {self.name} is damaged or cut off: it states {float(self.declared):.2f} s and only "
                f"{float(seconds):.2f} s can be decoded; upload the complete file."
            )

    def _gaps(self, sample_rate: int, max_seconds: float) -> Timeline:
        """Return the gaps at this rate, in a timeline that skips no sample."""
        found = read_timeline(self.path, 0, self.stream, self.format_name, max_seconds=max_seconds)
        scale = Fraction(sample_rate, self.stream.sample_rate)
        return Timeline(
            gaps=tuple(
                Gap(round((gap.position + found.num_skipped) * scale), round(gap.num_samples * scale))
                for gap in found.gaps
            )
        )


def _part(path: Path, name: str) -> _Part:
    found = probe(path, doing=f"The speech {name} is damaged: reading it", error=PermanentError, formats=AUDIO_FORMATS)
    stream = found.audio
    if stream is None or 0 in (stream.sample_rate, stream.channels):
        raise PermanentError(f"The speech {name} has no audio stream: export it as one file.")
    format_name = found.container.format_name
    if problem := lost_part(path, format_name):
        raise PermanentError(f"The speech {name} is damaged or cut off: {problem}; upload the complete file.")
    declared = stream.duration or (found.container.duration if len(found.streams) == 1 else None) or Fraction(0)
    if format_name in _LENGTH_UNKNOWN_IN:
        declared = Fraction(0)
    return _Part(path, name, format_name, stream, declared)


def _files(data: mmap, format_name: str) -> list[Pieces]:
    """Return the pieces of each file that must be written; an empty list if the file is good as it is."""
    if format_name == "mp3":
        frames = mp3_without_junk(data)
        return [list(frames)] if frames else []
    if format_name in _CHUNKED:
        found = find_audio(data)
        if isinstance(found, str) or (len(found) == 1 and found[0].as_declared):
            return []
        return [audio.pieces() for audio in found]
    parts = file_boundaries(data, format_name)
    return [] if parts == [slice(0, len(data))] else [list(slices(part.start, part.stop)) for part in parts]


def _refuse_too_many(files: Sized, name: str) -> None:
    if len(files) > MAX_FILES:
        raise PermanentError(f"The speech {name} is joined from more than {MAX_FILES} files: export it as one.")


def _written(data: mmap, pieces: Pieces, folder: Path, name: str) -> Path:
    copy = _new_path(folder, name)
    with copy.open("wb") as output:
        for piece in pieces:
            output.write(data[piece] if isinstance(piece, slice) else piece)
    return copy


def _new_path(folder: Path, name: str) -> Path:
    return Path(mkdtemp(dir=folder)) / name  # in a new folder, because another file may have the same `name`


def _other_file(data: mmap, format_name: str) -> str | None:
    """Return a message if a file of another format is appended to this one."""
    for name, (mark, mark_at) in _MARKS.items():
        position = data.find(mark) - mark_at
        if name != format_name and position >= 0:
            return f"a file of another kind ({name}) begins at byte {position}"
    return None


def _ogg_problem(data: mmap, part: slice) -> str | None:
    """Return a message if the last page of this file is not whole."""
    page = data.rfind(b"OggS", part.start, part.stop)
    if page + 27 <= part.stop and ogg_page_end(data, page) <= part.stop:
        return None
    return "its last Ogg page is not whole" if part.stop == len(data) else f"its Ogg page at byte {page} is not whole"
