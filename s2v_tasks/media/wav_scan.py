"""Find the samples of a WAV, AIFF or CAF file, also if the sizes in its headers are wrong.

Programs that write to a stream store a placeholder as the size. Crashed recorders leave an outdated size. `cat` appends
a whole file to another. A size is interpreted by these rules:

* It fits, and chunks, tags, zeros, another file or nothing follow: it is the size.
* It is 0, or it points beyond the file and is at least `_MIN_PLACEHOLDER`, or the size of the whole file contradicts
  it: the size is unknown. The samples extend to the metadata or the next file that follows, or to the end.
* It points beyond the file and could be true: the file was truncated.
* It fits, and other bytes follow: they continue the samples if they look like samples, else the file is refused.
"""

import re
from dataclasses import replace
from itertools import islice
from mmap import mmap

from s2v_tasks.media.container_structure import MAX_FILES
from s2v_tasks.media.mp3 import after_tags
from s2v_tasks.media.wav_chunks import AudioData, ChunkFormat, chunk_format

# Twice the largest upload, and three hours of 48 kHz mono: a truncated upload was not of a file of this size.
_MIN_PLACEHOLDER = 1_000_000_000
_WIDE_SIZE = 0xFFFFFFFF  # in RF64: the chunk ds64 has the size
_MAX_COPY_BYTES = 0xFFFFFFFF - 1024
# Real files have a handful; each costs time.
_MAX_CHUNKS = 1000
_MAX_LATE_CHUNKS = 100
# Chunks that programs write behind the samples; they can follow samples of unknown size.
_METADATA = re.compile(rb"LIST|bext|iXML|_PMX|id3 |ID3 |cue |smpl|PEAK|JUNK|NAME|AUTH|ANNO")
_MAX_METADATA_BYTES = 16 * 1024**2
_PRINTABLE = re.compile(rb"[ -~]{4}")


def find_audio(data: mmap) -> list[AudioData] | str:
    """Return the audio data of each concatenated file, usually of one; or a message that says why there is none."""
    family = chunk_format(data)
    if family is None:
        return "its header is not whole"
    scan = _Scan(family, data)
    for _ in range(_MAX_CHUNKS):
        if scan.position >= len(data) or len(scan.found) > MAX_FILES:
            break
        if problem := scan.step():
            return problem
    else:
        return f"it has no audio data in its first {_MAX_CHUNKS} chunks, or has more chunks than that"
    if not scan.has_audio:
        return f"it has no chunk {family.data_chunk.decode()!r}, so no audio data"
    return _why_not_copied(scan.found) or scan.found


def _why_not_copied(found: list[AudioData]) -> str | None:
    if len(found) == 1 and found[0].as_declared:
        return None
    if any(not audio.samples.block for audio in found):
        return "its sizes contradict each other" if len(found) == 1 else f"it is joined from {len(found)} files"
    size = max(audio.end - audio.start for audio in found)
    return f"it holds {size} bytes of audio, more than a WAV can" if size > _MAX_COPY_BYTES else None


class _Scan:
    """Moves from chunk to chunk, through all concatenated files."""

    def __init__(self, family: ChunkFormat, data: mmap) -> None:
        self.family, self.data = family, data
        self.found: list[AudioData] = []
        self.following = -1
        self._begin(0)

    def _begin(self, position: int) -> None:
        """Begin a file: its header states its length, the description of the samples follows."""
        self.position, self.kind = position, self.data[position + 8 : position + 12]
        chunk = self.family.chunk(self.data, position)
        self.announced_end = chunk[1] + chunk[2] if chunk else 0
        self.description, self.wide_size, self.has_audio, self.is_regular = b"", 0, False, True

    def _next_file(self, position: int) -> int:
        """Return where the next file begins; the end of the data if none does."""
        if self.following < position:
            self.following = self.family.next_file(self.data, position)
        return self.following

    def step(self) -> str | None:
        """Pass the next file header, chunk or other bytes; return a message if their meaning is unclear."""
        family, data = self.family, self.data
        if beginning := family.beginning.match(data, self.position):
            self._begin(self.position)
            self.position = beginning.end()
            return None
        chunk = family.chunk(data, self.position)
        if chunk is not None and self._is_audio(self.position):
            return self._take_audio(chunk[1] + family.lead, chunk[2] - family.lead)
        if chunk is None or not self._is_chunk(self.position):
            return self._take_other_bytes() if self.has_audio else self._broken_chunk()
        name, start, size = chunk
        if name == family.format_chunk:
            self.description = data[start : start + size]
        elif name == b"ds64":
            self.wide_size = int.from_bytes(data[start + 8 : start + 16], "little")
        self.position = self._after(start, size)
        return None

    def _broken_chunk(self) -> str:
        chunk = self.family.chunk(self.data, self.position)
        if chunk is None:
            return "it ends before its audio data begins"
        name, start, size = chunk
        return (
            f"its chunk {name.decode('latin-1')!r} at byte {self.position} states {size} bytes, "
            f"but {len(self.data) - start} exist, and no audio comes before it"
        )

    def _take_audio(self, start: int, size: int) -> str | None:
        if len(self.description) < self.family.min_format_bytes:
            return (
                f"the chunk {self.family.format_chunk.decode()!r} before its audio data has {len(self.description)} "
                f"bytes, expected at least {self.family.min_format_bytes}"
            )
        if size == _WIDE_SIZE and self.wide_size:
            size = self.wide_size
        following = self._next_file(start)
        audio = AudioData(self.family, self.kind, self.description, start, following, as_declared=False)
        announced = self._true_size(audio, size)
        if announced is None:
            self.position = end = self._end_of_unknown(start)
        elif announced > following - start and start + announced != len(self.data):
            return f"its header states {announced} bytes of audio, but {max(0, following - start)} exist"
        else:  # a header that was corrected after concatenation covers all files
            end = min(following, start + announced)
            self.position = self._after(start, end - start)
        if end - start < audio.described_bytes < _MIN_PLACEHOLDER:
            return f"its header states {audio.described_bytes} bytes of audio, but {end - start} exist"
        is_exact = self.is_regular and end - start == size and audio.is_described_as(size)
        self.found.append(replace(audio, end=end, as_declared=is_exact))
        self.has_audio = True
        return None

    def _true_size(self, audio: AudioData, size: int) -> int | None:
        """Return the size of the samples in bytes, None if it is unknown."""
        return next((each for each in (size, audio.described_bytes) if self._can_be_true(each, audio.start)), None)

    def _can_be_true(self, size: int, start: int) -> bool:
        is_truncated = size < _MIN_PLACEHOLDER and self.announced_end != len(self.data)
        return size > 0 and (size <= len(self.data) - start or is_truncated)

    def _take_other_bytes(self) -> str | None:
        """Pass bytes after the samples that are no chunk: truncated metadata, tags, zeros, or more samples."""
        data, last = self.data, self.found[-1]
        limit = self._next_file(self.position)
        if _METADATA.match(data, self.position) or after_tags(data, self.position) >= limit:
            self.position, self.found[-1] = limit, replace(last, as_declared=False)
            return None
        if not last.samples.continue_in(data, last.start, last.end, limit):
            return (
                f"its header states {last.end - last.start} bytes of audio, and the {limit - last.end} bytes "
                "after them are neither metadata nor clearly more audio"
            )
        self.position = self._end_of_unknown(last.end)
        self.found[-1] = replace(last, end=self.position, as_declared=False)
        return None

    def _end_of_unknown(self, start: int) -> int:
        """Return where samples of unknown size end: before another file, before metadata, or with the file."""
        limit = self._next_file(start)
        first = max(start, limit - _MAX_METADATA_BYTES)
        names = islice(_METADATA.finditer(self.data, first, limit), _MAX_LATE_CHUNKS)
        return next((name.start() for name in names if self._are_chunks(name.start(), limit)), limit)

    def _are_chunks(self, position: int, limit: int) -> bool:
        for _ in range(_MAX_LATE_CHUNKS):
            chunk = self.family.chunk(self.data, position)
            if position >= limit or chunk is None or not self._is_chunk(position):
                break
            position = self._after(*chunk[1:])
        return position >= limit

    def _is_chunk(self, position: int) -> bool:
        """Return True if a chunk begins there and ends in the file. Before the samples it may have any name."""
        chunk = self.family.chunk(self.data, position)
        if chunk is None:
            return False
        name, start, size = chunk
        is_named = not self.has_audio or _PRINTABLE.match(name) is not None
        return is_named and 0 <= size <= len(self.data) - start

    def _after(self, start: int, size: int) -> int:
        """Return the end of a chunk with its padding, which some programs leave out."""
        end = start + size
        padded = end + -size % self.family.alignment
        if padded == end or self._is_audio(padded) or not self._begins(end):
            return padded
        if self._begins(padded) and not self._is_audio(end):
            return padded
        self.is_regular = False
        return end

    def _is_audio(self, position: int) -> bool:
        chunk = self.family.chunk(self.data, position)
        return chunk is not None and chunk[0] == self.family.data_chunk

    def _begins(self, position: int) -> bool:
        """Return True if a file or a chunk with a printable name begins there."""
        chunk = self.family.chunk(self.data, position)
        if chunk is None:
            return False
        is_named = _PRINTABLE.match(chunk[0]) is not None and self._is_chunk(position)
        return is_named or self._is_audio(position) or self.family.beginning.match(self.data, position) is not None
