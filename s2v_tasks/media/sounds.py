"""Where the sound of a WAV, AIFF or CAF file lies, whatever its sizes say.

Writers that cannot seek back leave a placeholder where the size should be, recorders that crash leave the size of an
earlier moment, and `cat` puts a whole file behind another one. A size means one of these:

* It fits, and chunks, tags, zeros, another file or nothing follow: it is the size.
* It is 0, it reaches behind the file and is at least `_SMALLEST_PLACEHOLDER`, or the size of the whole file contradicts
  it: it is unknown. The sound lasts to the metadata or the next file that follows, or to the end.
* It reaches behind the file and could be true: the file was cut off.
* It fits, and bytes follow that are none of these: they continue the sound if they look like it, else the file is
  refused.
"""

import re
from dataclasses import replace
from itertools import islice
from mmap import mmap

from s2v_tasks.media.chunks import Form, Sound, form_of
from s2v_tasks.media.joined import MOST_FILES
from s2v_tasks.media.mp3 import after_tags

# Twice the largest upload, and three hours of 48 kHz mono: a cut upload was not of a file of this size.
_SMALLEST_PLACEHOLDER = 1_000_000_000
_WIDE_SIZE = 0xFFFFFFFF  # in RF64: the chunk ds64 has the size
_LARGEST_COPY_BYTES = 0xFFFFFFFF - 1024
# Real files have a handful; each costs time.
_MOST_CHUNKS = 1000
_MOST_LATE_CHUNKS = 100
# What programs write behind the sound; it can stand behind sound of unknown size.
_METADATA = re.compile(rb"LIST|bext|iXML|_PMX|id3 |ID3 |cue |smpl|PEAK|JUNK|NAME|AUTH|ANNO")
_MOST_METADATA_BYTES = 16 * 1024**2
_PRINTABLE = re.compile(rb"[ -~]{4}")


def sounds(data: mmap) -> list[Sound] | str:
    """The sounds of the file in their order, usually one; or what is wrong with it."""
    form = form_of(data)
    if form is None:
        return "its header is not whole"
    walk = _Walk(form, data)
    for _ in range(_MOST_CHUNKS):
        if walk.position >= len(data) or len(walk.found) > MOST_FILES:
            break
        if problem := walk.step():
            return problem
    else:
        return f"it has no sound in its first {_MOST_CHUNKS} chunks, or more chunks than that"
    if not walk.has_sound:
        return f"it has no chunk {form.sound.decode()!r}, so no sound"
    return _why_not_copied(walk.found) or walk.found


def _why_not_copied(found: list[Sound]) -> str | None:
    if len(found) == 1 and found[0].as_declared:
        return None
    if any(not sound.samples.block for sound in found):
        return "its sizes contradict each other" if len(found) == 1 else f"it is joined from {len(found)} files"
    size = max(sound.end - sound.start for sound in found)
    return f"it holds {size} bytes of sound, more than a WAV can" if size > _LARGEST_COPY_BYTES else None


class _Walk:
    """Goes from chunk to chunk, over all files that stand one behind the other."""

    def __init__(self, form: Form, data: mmap) -> None:
        self.form, self.data = form, data
        self.found: list[Sound] = []
        self.following = -1
        self._begin(0)

    def _begin(self, position: int) -> None:
        """Begin a file: its header says how long it is, its description follows."""
        self.position, self.kind = position, self.data[position + 8 : position + 12]
        chunk = self.form.chunk(self.data, position)
        self.announced_end = chunk[1] + chunk[2] if chunk else 0
        self.layout, self.wide_size, self.has_sound, self.is_regular = b"", 0, False, True

    def _next_file(self, position: int) -> int:
        """Where the next file begins; the end of the data if none does."""
        if self.following < position:
            self.following = self.form.next_file(self.data, position)
        return self.following

    def step(self) -> str | None:
        """Go past the next file header, chunk or other bytes; what is wrong, if it is not clear what they are."""
        form, data = self.form, self.data
        if beginning := form.beginning.match(data, self.position):
            self._begin(self.position)
            self.position = beginning.end()
            return None
        chunk = form.chunk(data, self.position)
        if chunk is not None and self._is_sound(self.position):
            return self._take_sound(chunk[1] + form.lead, chunk[2] - form.lead)
        if chunk is None or not self._is_chunk(self.position):
            return self._take_other_bytes() if self.has_sound else self._broken_chunk()
        name, start, size = chunk
        if name == form.layout:
            self.layout = data[start : start + size]
        elif name == b"ds64":
            self.wide_size = int.from_bytes(data[start + 8 : start + 16], "little")
        self.position = self._after(start, size)
        return None

    def _broken_chunk(self) -> str:
        chunk = self.form.chunk(self.data, self.position)
        if chunk is None:
            return "it ends before its sound begins"
        name, start, size = chunk
        return (
            f"its chunk {name.decode('latin-1')!r} at byte {self.position} announces {size} bytes, "
            f"{len(self.data) - start} are there, and no sound comes before it"
        )

    def _take_sound(self, start: int, size: int) -> str | None:
        if len(self.layout) < self.form.least_layout_bytes:
            return (
                f"the chunk {self.form.layout.decode()!r} before its sound has {len(self.layout)} bytes, expected at "
                f"least {self.form.least_layout_bytes}"
            )
        if size == _WIDE_SIZE and self.wide_size:
            size = self.wide_size
        following = self._next_file(start)
        sound = Sound(self.form, self.kind, self.layout, start, following, as_declared=False)
        announced = self._true_size(sound, size)
        if announced is None:
            self.position = end = self._end_of_unknown(start)
        elif announced > following - start and start + announced != len(self.data):
            return f"its header announces {announced} bytes of sound, {max(0, following - start)} are there"
        else:  # a header that was made for all files together covers them exactly
            end = min(following, start + announced)
            self.position = self._after(start, end - start)
        if end - start < sound.described_bytes < _SMALLEST_PLACEHOLDER:
            return f"its header announces {sound.described_bytes} bytes of sound, {end - start} are there"
        is_exact = self.is_regular and end - start == size and sound.is_described_as(size)
        self.found.append(replace(sound, end=end, as_declared=is_exact))
        self.has_sound = True
        return None

    def _true_size(self, sound: Sound, size: int) -> int | None:
        """The size of the samples in bytes, None if nothing says it."""
        return next((each for each in (size, sound.described_bytes) if self._can_be_true(each, sound.start)), None)

    def _can_be_true(self, size: int, start: int) -> bool:
        is_cut_off = size < _SMALLEST_PLACEHOLDER and self.announced_end != len(self.data)
        return size > 0 and (size <= len(self.data) - start or is_cut_off)

    def _take_other_bytes(self) -> str | None:
        """Go past what is no whole chunk and lies behind sound: cut metadata, tags, zeros, or more of the sound."""
        data, last = self.data, self.found[-1]
        limit = self._next_file(self.position)
        if _METADATA.match(data, self.position) or after_tags(data, self.position) >= limit:
            self.position, self.found[-1] = limit, replace(last, as_declared=False)
            return None
        if not last.samples.continue_in(data, last.start, last.end, limit):
            return (
                f"its header announces {last.end - last.start} bytes of sound, and the {limit - last.end} bytes behind "
                "them are neither metadata nor clearly more of it"
            )
        self.position = self._end_of_unknown(last.end)
        self.found[-1] = replace(last, end=self.position, as_declared=False)
        return None

    def _end_of_unknown(self, start: int) -> int:
        """Where sound ends whose size is not known: before another file, before metadata, or with the file."""
        limit = self._next_file(start)
        first = max(start, limit - _MOST_METADATA_BYTES)
        names = islice(_METADATA.finditer(self.data, first, limit), _MOST_LATE_CHUNKS)
        return next((name.start() for name in names if self._are_chunks(name.start(), limit)), limit)

    def _are_chunks(self, position: int, limit: int) -> bool:
        for _ in range(_MOST_LATE_CHUNKS):
            chunk = self.form.chunk(self.data, position)
            if position >= limit or chunk is None or not self._is_chunk(position):
                break
            position = self._after(*chunk[1:])
        return position >= limit

    def _is_chunk(self, position: int) -> bool:
        """Whether a chunk is there that lies in the file. Before the sound any name will do."""
        chunk = self.form.chunk(self.data, position)
        if chunk is None:
            return False
        name, start, size = chunk
        is_named = not self.has_sound or _PRINTABLE.match(name) is not None
        return is_named and 0 <= size <= len(self.data) - start

    def _after(self, start: int, size: int) -> int:
        """Behind a chunk and its padding, which some writers leave out."""
        end = start + size
        padded = end + -size % self.form.alignment
        if padded == end or self._is_sound(padded) or not self._begins(end):
            return padded
        if self._begins(padded) and not self._is_sound(end):
            return padded
        self.is_regular = False
        return end

    def _is_sound(self, position: int) -> bool:
        chunk = self.form.chunk(self.data, position)
        return chunk is not None and chunk[0] == self.form.sound

    def _begins(self, position: int) -> bool:
        """Whether a file or a chunk with a proper name begins there."""
        chunk = self.form.chunk(self.data, position)
        if chunk is None:
            return False
        is_named = _PRINTABLE.match(chunk[0]) is not None and self._is_chunk(position)
        return is_named or self._is_sound(position) or self.form.beginning.match(self.data, position) is not None
