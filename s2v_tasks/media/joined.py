"""Files that are several whole files one behind the other (`cat`, chained Ogg): found, and decoded to one.

ffmpeg plays the first file only, or all of them in some versions and containers; here each is decoded for itself.
"""

import re
import struct
from collections.abc import Iterator, Sized
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice, pairwise
from mmap import mmap
from pathlib import Path

import numpy as np

from s2v_tasks.errors import PermanentError
from s2v_tasks.media.boxes import MOST_BOXES, lost_part
from s2v_tasks.media.ffmpeg import AUDIO_FORMATS, feed, file_url, pipe_input, read_chunks, uploaded_input
from s2v_tasks.media.gaps import Gap, Timeline, read_timeline
from s2v_tasks.media.mp3 import before_tags
from s2v_tasks.media.probe import Stream, probe

# What only the beginning of a file has.
_BEGINNINGS = {
    "ogg": re.compile(rb"OggS\0[\x02\x03\x06\x07]\0{8}"),  # first page of a stream
    "flac": re.compile(rb"fLaC[\0\x80]\0\0\x22"),
    "matroska": re.compile(rb"\x1a\x45\xdf\xa3.{1,48}\x42\x82.(?:webm|matroska)", re.DOTALL),
    "amr": re.compile(rb"#!AMR(?:-WB)?\n"),
}
MOST_FILES = 100
_MOST_BEGINNINGS = 10_000
_CHUNK_SAMPLES = 1 << 18
_LENGTH_TOLERANCE_SECONDS = Fraction(1, 10)
_LENGTH_UNKNOWN_IN = frozenset({"amr"})  # an estimate
_SAMPLE_BYTES = 4
_BOX = struct.Struct(">I4s")


def files_in(data: mmap, format_name: str) -> list[slice]:
    """The bytes of each file that is there, usually one. `format_name` is that of `container_format`.

    A FLAC file ends before the tags and the padding behind it, which its decoder would take for damage.
    """
    joints = _second_boxes(data) if format_name == "mov" else islice(_beginnings(data, format_name), 1, None)
    joints = islice(joints, MOST_FILES)  # one more than can be joined
    files = [slice(start, end) for start, end in pairwise([0, *joints, len(data)])]
    if format_name != "flac":
        return files
    return [slice(file.start, before_tags(data, file.start, file.stop)) for file in files]


def refuse_too_many(files: Sized, name: str) -> None:
    """Raise PermanentError for more files than are joined."""
    if len(files) > MOST_FILES:
        raise PermanentError(f"The speech {name} is joined from more than {MOST_FILES} files: export it as one.")


def _beginnings(data: mmap, format_name: str) -> Iterator[int]:
    beginning, end = _BEGINNINGS.get(format_name), -1
    for match in islice(beginning.finditer(data), _MOST_BEGINNINGS) if beginning else ():
        # The first pages of streams that are played together follow each other.
        if format_name != "ogg" or match.start() != end:
            yield match.start()
        end = ogg_page_end(data, match.start())


def ogg_page_end(data: mmap, page: int) -> int:
    """Where the page that begins there should end; may lie behind the file."""
    header_end = page + 27
    num_segments = data[header_end - 1] if header_end <= len(data) else 0
    return header_end + num_segments + sum(data[header_end : header_end + num_segments])


def _second_boxes(data: mmap) -> Iterator[int]:
    """Where an MP4 begins behind a complete one."""
    position, has_index = 0, False
    for _ in range(MOST_BOXES):
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


@dataclass(frozen=True)
class _Part:
    """One of the files; `name` says which of what speech it is."""

    path: Path
    name: str
    format_name: str
    stream: Stream
    declared: Fraction

    def samples(self, sample_rate: int, channels: int, max_seconds: float) -> Iterator[bytes]:
        """Float samples of the first `max_seconds` at this rate; mono becomes as many equal channels."""
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
        if seconds < min(self.declared, Fraction(max_seconds)) - _LENGTH_TOLERANCE_SECONDS:
            raise PermanentError(
                f"The speech {self.name} is damaged or cut off: it announces {float(self.declared):.2f} s and only "
                f"{float(seconds):.2f} s can be decoded; upload the complete file."
            )

    def _gaps(self, sample_rate: int, max_seconds: float) -> Timeline:
        """The gaps between the samples at this rate, of which none is skipped."""
        found = read_timeline(self.path, 0, self.stream, self.format_name, max_seconds=max_seconds)
        scale = Fraction(sample_rate, self.stream.sample_rate)
        return Timeline(
            gaps=tuple(
                Gap(round((gap.position + found.num_skipped) * scale), round(gap.num_samples * scale))
                for gap in found.gaps
            )
        )


def join(files: list[Path], output: Path, *, max_duration_seconds: float) -> None:
    """Decode the files one behind the other into a float WAV with the highest of their sample rates.

    Raises PermanentError if one is damaged. At most one second more than `max_duration_seconds` is written.
    """
    name = output.name
    parts = [_part(path, f"{name} (file {k} of {len(files)} in it)") for k, path in enumerate(files, start=1)]
    streams = [part.stream for part in parts]
    sample_rate, channels = max(each.sample_rate for each in streams), max(each.channels for each in streams)
    if not {each.channels for each in streams} <= {1, channels}:
        several = ", ".join(str(each.channels) for each in streams)
        raise PermanentError(f"The speech {name} is joined from files of {several} channels: export it as one.")
    sound = pipe_input(format="f32le", ar=sample_rate, ac=channels).output(
        file_url(output), format="wav", acodec="pcm_f32le", rf64="auto"
    )

    def samples() -> Iterator[bytes]:
        left = max_duration_seconds + 1
        for part in parts:
            if left > 0:
                for chunk in part.samples(sample_rate, channels, left):
                    yield chunk
                    left -= len(chunk) / (channels * _SAMPLE_BYTES * sample_rate)

    feed(sound, samples(), doing=f"joining {name}", error=PermanentError)


def _part(path: Path, name: str) -> _Part:
    found = probe(path, doing=f"The speech {name} is damaged: reading it", error=PermanentError, formats=AUDIO_FORMATS)
    stream = found.audio
    if stream is None or stream.sample_rate <= 0 or stream.channels <= 0:
        raise PermanentError(f"The speech {name} has no sound: export it as one file.")
    format_name = found.container.format_name
    if problem := lost_part(path, format_name):
        raise PermanentError(f"The speech {name} is damaged or cut off: {problem}; upload the complete file.")
    declared = stream.duration or (found.container.duration if len(found.streams) == 1 else None) or Fraction(0)
    if format_name in _LENGTH_UNKNOWN_IN:
        declared = Fraction(0)
    return _Part(path, name, format_name, stream, declared)
