"""How WAV, AIFF and CAF files describe their samples, and whether bytes look like more of them."""

import struct
from dataclasses import dataclass
from mmap import mmap

import numpy as np
import numpy.typing as npt

_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
_LOOKED_AT_BYTES = 1 << 20
# Anything but sound (text, archives, compressed sound), read as samples, is about -5 dBFS loud; speech never is.
_LOUDEST_SPEECH = 0.4
_LOUDER = 1.5
_AIFF_LINEAR = (b"NONE", b"twos", b"sowt", b"in24", b"in32", b"fl32", b"FL32", b"fl64", b"FL64")
_ONE_BYTE = (b"alaw", b"ALAW", b"ulaw", b"ULAW")


@dataclass(frozen=True)
class Samples:
    """Size and kind of the samples.

    `block`: bytes that belong together, one sample of each channel or one block of a codec; 0 if not known.
    `width`: bytes of one linear sample in a WAV, 0 for all others.
    """

    block: int
    width: int = 0
    is_float: bool = False

    def continue_in(self, data: mmap, start: int, middle: int, end: int) -> bool:
        """Whether the bytes from `middle` to `end` look like more of the samples from `start` to `middle`."""
        if self.width < 2:  # in 8 bits, text is as quiet as speech
            return False
        middle -= (middle - start) % self.block
        before = self._loudness(data, max(start, middle - _LOOKED_AT_BYTES // self.block * self.block), middle)
        behind = self._loudness(data, middle, min(end, middle + _LOOKED_AT_BYTES))
        return behind < max(_LOUDEST_SPEECH, _LOUDER * before)

    def _loudness(self, data: mmap, start: int, end: int) -> float:
        """Root mean square, 1 for full scale; infinite or NaN for what are no float samples."""
        raw = np.frombuffer(data[start : end - (end - start) % self.width], np.uint8).reshape(-1, self.width)
        samples: npt.NDArray[np.float64]
        with np.errstate(over="ignore", invalid="ignore"):
            if self.is_float:
                samples = raw.view(f"<f{self.width}").astype(np.float64)
            else:  # the upper 16 bits say how loud it is
                samples = np.ascontiguousarray(raw[:, -2:]).view("<i2").astype(np.float64) / 32768
            return float(np.sqrt(np.mean(np.square(samples)))) if samples.size else 0.0


def wav_samples(layout: bytes) -> Samples:
    """The samples that the content of a chunk `fmt ` (at least 16 bytes) describes."""
    codec, channels, _, _, block, bits = struct.unpack_from("<HHIIHH", layout)
    if codec == _EXTENSIBLE and len(layout) >= 26:
        codec = int.from_bytes(layout[24:26], "little")
    width, is_float = -(-bits // 8), codec == _FLOAT
    if codec not in {_PCM, _FLOAT} or width not in ({4, 8} if is_float else {1, 2, 3, 4}) or not channels:
        return Samples(max(block, 1))
    return Samples(channels * width, width, is_float)


def aiff_samples(layout: bytes) -> Samples:
    """The samples that the content of a chunk `COMM` (at least 18 bytes) describes."""
    channels, _, bits = struct.unpack_from(">HIH", layout)
    codec = layout[18:22] or b"NONE"
    return Samples(channels * (-(-bits // 8) if codec in _AIFF_LINEAR else codec in _ONE_BYTE))


def caf_samples(layout: bytes) -> Samples:
    """The samples that the content of a chunk `desc` (at least 32 bytes) describes."""
    codec, _, packet_bytes, packet_frames = struct.unpack_from(">8x4sIII", layout)
    return Samples(packet_bytes if packet_frames == 1 and codec in {b"lpcm", *_ONE_BYTE} else 0)
