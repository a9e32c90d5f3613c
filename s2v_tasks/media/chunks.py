"""WAV (RIFF, RF64, BW64, Wave64), AIFF and CAF: their chunks, and a clean file around the samples of one."""

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from mmap import mmap

from s2v_tasks.media.samples import Samples, aiff_samples, caf_samples, wav_samples

_COPIED_BYTES = 1 << 20
# Sound has one in gigabytes by chance; each costs time.
_MOST_MARKS = 1000

Pieces = list[bytes | slice]


@dataclass(frozen=True)
class Form:
    """A family of files made of chunks."""

    beginning: re.Pattern[bytes]
    mark: bytes  # rare bytes that each beginning has, `mark_at` bytes behind its first one
    mark_at: int
    header: struct.Struct  # name and size of a chunk
    counted: int  # bytes of its header that the size of a chunk includes
    alignment: int
    layout: bytes  # the chunk that describes the samples
    least_layout_bytes: int
    samples: Callable[[bytes], Samples]
    sound: bytes  # the chunk that holds the samples
    lead: int  # bytes before the first sample in it

    def chunk(self, data: mmap, position: int) -> tuple[bytes, int, int] | None:
        """(name, start, size) of the content of the chunk that begins there; None if the file ends in its header."""
        if position + self.header.size > len(data):
            return None
        name, size = self.header.unpack_from(data, position)
        return name, position + self.header.size, size - self.counted

    def next_file(self, data: mmap, position: int) -> int:
        """Where the next file of the family begins, from `position` on; the end of the data if none does."""
        found = position + self.mark_at - 1
        for _ in range(_MOST_MARKS):
            found = data.find(self.mark, found + 1)
            if found < 0:
                break
            if self.beginning.match(data, found - self.mark_at):
                return found - self.mark_at
        return len(data)


_WAV_CHUNKS = (b"fmt ", 16, wav_samples, b"data", 0)
_RIFF = Form(
    re.compile(rb"(?:RIFF|RF64|BW64).{4}WAVE", re.DOTALL), b"WAVE", 8, struct.Struct("<4sI"), 0, 2, *_WAV_CHUNKS
)
_W64_GUID = rb"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb\x04\xc1\0\0"
_W64 = Form(
    re.compile(_W64_GUID + rb".{8}wave.{12}", re.DOTALL), b"riff", 0, struct.Struct("<4s12xQ"), 24, 8, *_WAV_CHUNKS
)
_AIFF_CHUNKS = (b"COMM", 18, aiff_samples, b"SSND", 8)
_AIFF = Form(re.compile(rb"FORM.{4}AIF[FC]", re.DOTALL), b"FORM", 0, struct.Struct(">4sI"), 0, 2, *_AIFF_CHUNKS)
_CAF_CHUNKS = (b"desc", 32, caf_samples, b"data", 4)
_CAF = Form(re.compile(rb"caff\0\x01\0\0"), b"caff", 0, struct.Struct(">4sq"), 0, 1, *_CAF_CHUNKS)


@dataclass(frozen=True)
class Sound:
    """The samples of one file, bytes `start` to `end`, and their description.

    `as_declared`: every reader takes them for what they are. `kind`: AIFF or AIFC.
    """

    form: Form
    kind: bytes
    layout: bytes
    start: int
    end: int
    as_declared: bool

    @property
    def samples(self) -> Samples:
        """What the description says of the samples."""
        return self.form.samples(self.layout)

    @property
    def described_bytes(self) -> int:
        """Size of the samples by the number of frames in their description; 0 where it has none."""
        return int.from_bytes(self.layout[2:6], "big") * self.samples.block if self.form is _AIFF else 0

    def is_described_as(self, size: int) -> bool:
        """Whether so many bytes are whole samples, and as many as the description says."""
        if self.form is _AIFF and self.samples.block:
            return self.described_bytes == size
        return not self.samples.width or size % self.samples.block == 0

    def pieces(self) -> Pieces:
        """A file with nothing but the description and the samples, and true sizes. Wave64 becomes WAV."""
        block = self.samples.block
        size = (self.end - self.start) // block * block
        end = self.start + size
        content = slices(self.start, end)
        if self.form is _CAF:
            head = _chunk(_CAF, b"desc", self.layout) + _CAF.header.pack(b"data", size + 4) + bytes(4)
            return [b"caff\0\1\0\0" + head, *content]
        if self.form is _AIFF:
            layout = self.layout[:2] + struct.pack(">I", size // block) + self.layout[6:]
            head = _chunk(_AIFF, b"COMM", layout) + _AIFF.header.pack(b"SSND", size + 8) + bytes(8)
            return [_AIFF.header.pack(b"FORM", 4 + len(head) + size) + self.kind + head, *content]
        head = _chunk(_RIFF, b"fmt ", self.layout) + _RIFF.header.pack(b"data", size)
        return [_RIFF.header.pack(b"RIFF", 4 + len(head) + size) + b"WAVE" + head, *content]


def slices(start: int, end: int) -> Pieces:
    """The range in pieces that are small beside the file."""
    return [slice(at, min(end, at + _COPIED_BYTES)) for at in range(start, end, _COPIED_BYTES)]


def form_of(data: mmap) -> Form | None:
    """The family of the file; None if not even its header is whole."""
    return next((form for form in (_RIFF, _W64, _AIFF, _CAF) if form.beginning.match(data)), None)


def _chunk(form: Form, name: bytes, content: bytes) -> bytes:
    return form.header.pack(name, len(content)) + content + bytes(-len(content) % form.alignment)
