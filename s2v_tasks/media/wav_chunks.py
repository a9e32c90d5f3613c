"""Chunks and sample formats of WAV (RIFF, RF64, BW64, Wave64), AIFF and CAF files.

`ChunkFormat` reads chunks, `SampleFormat` describes samples, and `AudioData.pieces` is a valid file around samples.
"""

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from mmap import mmap

import numpy as np
import numpy.typing as npt

Pieces = list[bytes | slice]  # of a file that is written: new bytes, and ranges of the file that is read

_COPIED_BYTES = 1 << 20
# Audio data contains one in gigabytes by chance; each costs time.
_MAX_MARKS = 1000
_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
_COMPARED_BYTES = 1 << 20
# Other data (text, archives, compressed audio), read as samples, has about -5 dBFS; speech never has.
_LOUDEST_SPEECH = 0.4
_LOUDER = 1.5
_AIFF_LINEAR = (b"NONE", b"twos", b"sowt", b"in24", b"in32", b"fl32", b"FL32", b"fl64", b"FL64")
_ONE_BYTE = (b"alaw", b"ALAW", b"ulaw", b"ULAW")


@dataclass(frozen=True)
class SampleFormat:
    """Size and type of the samples.

    `block`: bytes that belong together, one sample of each channel or one block of a codec; 0 if unknown.
    `width`: bytes of one linear sample in a WAV, 0 for all others.
    """

    block: int
    width: int = 0
    is_float: bool = False

    def continue_in(self, data: mmap, start: int, middle: int, end: int) -> bool:
        """Return True if the bytes from `middle` to `end` look like more of the samples from `start` to `middle`."""
        if self.width < 2:  # read as 8-bit samples, text is as quiet as speech
            return False
        middle -= (middle - start) % self.block
        before = self._loudness(data, max(start, middle - _COMPARED_BYTES // self.block * self.block), middle)
        behind = self._loudness(data, middle, min(end, middle + _COMPARED_BYTES))
        return behind < max(_LOUDEST_SPEECH, _LOUDER * before)

    def _loudness(self, data: mmap, start: int, end: int) -> float:
        """Return the root mean square, 1 for full scale; infinite or NaN for bytes that are not float samples."""
        raw = np.frombuffer(data[start : end - (end - start) % self.width], np.uint8).reshape(-1, self.width)
        samples: npt.NDArray[np.float64]
        with np.errstate(over="ignore", invalid="ignore"):
            if self.is_float:
                samples = raw.view(f"<f{self.width}").astype(np.float64)
            else:  # the upper 16 bits are precise enough
                samples = np.ascontiguousarray(raw[:, -2:]).view("<i2").astype(np.float64) / 32768
            return float(np.sqrt(np.mean(np.square(samples)))) if samples.size else 0.0


def wav_samples(description: bytes) -> SampleFormat:
    """Return the sample format in the content of a `fmt ` chunk (at least 16 bytes)."""
    codec, channels, _, _, block, bits = struct.unpack_from("<HHIIHH", description)
    if codec == _EXTENSIBLE and len(description) >= 26:
        codec = int.from_bytes(description[24:26], "little")
    width, is_float = -(-bits // 8), codec == _FLOAT
    if codec not in {_PCM, _FLOAT} or width not in ({4, 8} if is_float else {1, 2, 3, 4}) or not channels:
        return SampleFormat(max(block, 1))
    return SampleFormat(channels * width, width, is_float)


def with_all_bits(description: bytes) -> bytes:
    """Return the content of a `fmt ` chunk with as many valid bits as its samples have.

    ffmpeg takes the number of valid bits for the width: it decodes 16 valid bits in 24 to other, longer sound.
    """
    is_linear = description[:2] == _EXTENSIBLE.to_bytes(2, "little") and wav_samples(description).width
    return description[:18] + description[14:16] + description[20:] if is_linear else description


def aiff_samples(description: bytes) -> SampleFormat:
    """Return the sample format in the content of a `COMM` chunk (at least 18 bytes)."""
    channels, _, bits = struct.unpack_from(">HIH", description)
    codec = description[18:22] or b"NONE"
    return SampleFormat(channels * (-(-bits // 8) if codec in _AIFF_LINEAR else codec in _ONE_BYTE))


def caf_samples(description: bytes) -> SampleFormat:
    """Return the sample format in the content of a `desc` chunk (at least 32 bytes)."""
    codec, _, packet_bytes, packet_frames = struct.unpack_from(">8x4sIII", description)
    return SampleFormat(packet_bytes if packet_frames == 1 and codec in {b"lpcm", *_ONE_BYTE} else 0)


@dataclass(frozen=True)
class ChunkFormat:
    """A family of files that consist of chunks."""

    beginning: re.Pattern[bytes]
    mark: bytes  # rare bytes that each beginning has, `mark_at` bytes behind its first one
    mark_at: int
    header: struct.Struct  # name and size of a chunk
    counted: int  # bytes of its header that the size of a chunk includes
    alignment: int
    format_chunk: bytes  # the name of the chunk that describes the samples
    min_format_bytes: int
    samples: Callable[[bytes], SampleFormat]
    data_chunk: bytes  # the name of the chunk that holds the samples
    lead: int  # bytes before the first sample in it

    def chunk(self, data: mmap, position: int) -> tuple[bytes, int, int] | None:
        """Return (name, start, size) of the content of the chunk at `position`; None if the file ends in its header."""
        if position + self.header.size > len(data):
            return None
        name, size = self.header.unpack_from(data, position)
        return name, position + self.header.size, size - self.counted

    def next_file(self, data: mmap, position: int) -> int:
        """Return the position of the next file of the family from `position` on; the end of the data without one."""
        found = position + self.mark_at - 1
        for _ in range(_MAX_MARKS):
            found = data.find(self.mark, found + 1)
            if found < 0:
                break
            if self.beginning.match(data, found - self.mark_at):
                return found - self.mark_at
        return len(data)


_WAV_CHUNKS = (b"fmt ", 16, wav_samples, b"data", 0)
_RIFF = ChunkFormat(
    re.compile(rb"(?:RIFF|RF64|BW64).{4}WAVE", re.DOTALL), b"WAVE", 8, struct.Struct("<4sI"), 0, 2, *_WAV_CHUNKS
)
_W64_GUID = rb"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb\x04\xc1\0\0"
_W64 = ChunkFormat(
    re.compile(_W64_GUID + rb".{8}wave.{12}", re.DOTALL), b"riff", 0, struct.Struct("<4s12xQ"), 24, 8, *_WAV_CHUNKS
)
_AIFF_CHUNKS = (b"COMM", 18, aiff_samples, b"SSND", 8)
_AIFF = ChunkFormat(re.compile(rb"FORM.{4}AIF[FC]", re.DOTALL), b"FORM", 0, struct.Struct(">4sI"), 0, 2, *_AIFF_CHUNKS)
_CAF_CHUNKS = (b"desc", 32, caf_samples, b"data", 4)
_CAF = ChunkFormat(re.compile(rb"caff\0\x01\0\0"), b"caff", 0, struct.Struct(">4sq"), 0, 1, *_CAF_CHUNKS)


@dataclass(frozen=True)
class AudioData:
    """The samples of one file, bytes `start` to `end`, and the content of the chunk that describes them.

    `as_declared`: the sizes in the file are right, so that every decoder finds these samples. `kind`: AIFF or AIFC.
    """

    family: ChunkFormat
    kind: bytes
    description: bytes
    start: int
    end: int
    as_declared: bool

    @property
    def samples(self) -> SampleFormat:
        """Return the sample format that the description states."""
        return self.family.samples(self.description)

    @property
    def described_bytes(self) -> int:
        """Return the size of the samples by the number of frames in their description; 0 if it has none."""
        return int.from_bytes(self.description[2:6], "big") * self.samples.block if self.family is _AIFF else 0

    def is_described_as(self, size: int) -> bool:
        """Return True if `size` bytes are whole samples, as many and as wide as the description states."""
        if self.family is _AIFF and self.samples.block:
            return self.described_bytes == size
        if self.samples.width and with_all_bits(self.description) != self.description:
            return False
        return not self.samples.width or size % self.samples.block == 0

    def pieces(self) -> Pieces:
        """Return a file of the description and the samples only, with true sizes. Wave64 becomes WAV."""
        block = self.samples.block
        size = (self.end - self.start) // block * block
        end = self.start + size
        content = slices(self.start, end)
        if self.family is _CAF:
            head = _chunk(_CAF, b"desc", self.description) + _CAF.header.pack(b"data", size + 4) + bytes(4)
            return [b"caff\0\1\0\0" + head, *content]
        if self.family is _AIFF:
            description = self.description[:2] + struct.pack(">I", size // block) + self.description[6:]
            head = _chunk(_AIFF, b"COMM", description) + _AIFF.header.pack(b"SSND", size + 8) + bytes(8)
            return [_AIFF.header.pack(b"FORM", 4 + len(head) + size) + self.kind + head, *content]
        head = _chunk(_RIFF, b"fmt ", with_all_bits(self.description)) + _RIFF.header.pack(b"data", size)
        return [_RIFF.header.pack(b"RIFF", 4 + len(head) + size) + b"WAVE" + head, *content]


def slices(start: int, end: int) -> Pieces:
    """Divide the range into pieces of bounded size."""
    return [slice(at, min(end, at + _COPIED_BYTES)) for at in range(start, end, _COPIED_BYTES)]


def chunk_format(data: mmap) -> ChunkFormat | None:
    """Return the family of the file; None if its header is not whole."""
    return next((family for family in (_RIFF, _W64, _AIFF, _CAF) if family.beginning.match(data)), None)


def _chunk(family: ChunkFormat, name: bytes, content: bytes) -> bytes:
    return family.header.pack(name, len(content)) + content + bytes(-len(content) % family.alignment)
