"""WAV, AIFF and CAF files that are built by hand."""

import struct

import numpy as np

RATE = 8000


def speech(num_samples: int, seed: int = 1) -> bytes:
    """Return 16-bit samples as quiet as speech, which begin with some silence."""
    samples = np.random.default_rng(seed).normal(0, 3000, num_samples)
    samples[:5] = 0
    return samples.astype("<i2").tobytes()


def chunk(name: bytes, content: bytes, size: int | None = None, pad: bytes | None = None) -> bytes:
    """Return a chunk of a WAV; by default its size is that of the content."""
    padding = bytes(len(content) % 2) if pad is None else pad
    return name + struct.pack("<I", len(content) if size is None else size) + content + padding


def layout(codec: int = 1, channels: int = 1, bits: int = 16, rate: int = RATE) -> bytes:
    block = channels * bits // 8
    return chunk(b"fmt ", struct.pack("<HHIIHH", codec, channels, rate, rate * block, block, bits))


def wav(samples: bytes, *, size: int | None = None, before: bytes = b"", behind: bytes = b"", **kind: int) -> bytes:
    """Return a WAV whose header states the true size of the file."""
    body = b"WAVE" + layout(**kind) + before + chunk(b"data", samples, size) + behind
    return b"RIFF" + struct.pack("<I", len(body)) + body


def old_riff(data: bytes, size: int = 36) -> bytes:
    """Return the WAV with another size of the whole file."""
    return data[:4] + struct.pack("<I", size) + data[8:]


def rf64(name: bytes, size: int, wide_size: int) -> bytes:
    ds64 = chunk(b"ds64", struct.pack("<QQQI", 0xFFFFFFFF, wide_size, 0, 0))
    return name + b"\xff\xff\xff\xffWAVE" + ds64 + layout() + chunk(b"data", ONE, size)


def w64(samples: bytes, size: int | None = None) -> bytes:
    def wide(name: bytes, content: bytes, size: int | None = None) -> bytes:
        rest = bytes.fromhex("f3acd3118cd100c04f8edb8a")
        return name + rest + struct.pack("<Q", 24 + (len(content) if size is None else size)) + content

    body = wide(b"fmt ", layout()[8:]) + wide(b"data", samples, size) + bytes(-len(samples) % 8)
    head = bytes.fromhex("726966662e91cf11a5d628db04c10000") + struct.pack("<Q", 40 + len(body))
    return head + b"wave" + bytes.fromhex("f3acd3118cd100c04f8edb8a") + body


def aiff(
    samples: bytes, size: int | None = None, frames: int | None = None, codec: bytes = b"", bits: int = 16
) -> bytes:
    num_frames = len(samples) // 2 if frames is None else frames
    common = struct.pack(">HIH", 1, num_frames, bits) + bytes.fromhex("400bfa00000000000000") + codec
    body = b"COMM" + struct.pack(">I", len(common)) + common
    body += b"SSND" + struct.pack(">III", 8 + (len(samples) if size is None else size), 0, 0) + samples
    return b"FORM" + struct.pack(">I", 4 + len(body)) + (b"AIFC" if codec else b"AIFF") + body


def caf(samples: bytes, size: int | None = None, codec: bytes = b"lpcm") -> bytes:
    description = struct.pack(">d4sIIIII", RATE, codec, 2, 2, 1, 1, 16)
    body = b"desc" + struct.pack(">q", 32) + description
    return (
        b"caff\0\1\0\0" + body + b"data" + struct.pack(">qI", 4 + (len(samples) if size is None else size), 0) + samples
    )


def big_endian(samples: bytes) -> bytes:
    return np.frombuffer(samples, "<i2").astype(">i2").tobytes()


ONE, TWO, THREE = speech(800), speech(700, 2), speech(901, 3)
LIST = chunk(b"LIST", b"INFOISFT" + struct.pack("<I", 4) + b"me!\0")
