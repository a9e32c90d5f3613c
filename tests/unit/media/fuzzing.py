"""Read many media files with altered headers: `python -m tests.unit.media.fuzzing --count 1000`.

The files are the same for the same seed. The result is one JSON object: faults, numbers of accepted and refused files
by kind, the slowest file, and the largest memory of this process or of an ffmpeg process that it started.
"""

import argparse
import json
import random
import resource
import struct
import sys
import tempfile
import time
import traceback
from collections import Counter
from fractions import Fraction
from pathlib import Path

import ffmpeg
import numpy as np
import soundfile
from PIL import Image

from s2v_tasks.errors import PermanentError
from s2v_tasks.media import ffmpeg as tools
from s2v_tasks.media.image import normalise_image
from s2v_tasks.media.speech import SPEECH_SAMPLE_RATE, normalise_speech
from tests.unit.media.pictures import jpeg, segment
from tests.unit.media.wav_bytes import LIST, speech, wav

LIMIT_SECONDS = 10
_RATE = 16_000
_ENCODERS = {
    "webm": {"format": "webm", "acodec": "libopus"},
    "ogg": {"format": "ogg", "acodec": "libopus"},
    "vorbis": {"format": "ogg", "acodec": "libvorbis"},
    "m4a": {"format": "ipod", "acodec": "aac", "movflags": "+faststart"},
    "mp3": {"format": "mp3", "acodec": "libmp3lame"},
    "flac": {"format": "flac", "acodec": "flac"},
}
KINDS = ("exif", "wav", *_ENCODERS)
_EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def good_files(folder: Path) -> dict[str, tuple[bytes, int, int]]:
    """Return a good file of each kind, and the bytes from `start` to `end` that are altered: its headers."""
    samples = speech(_RATE)
    sound = wav(samples, before=LIST, behind=LIST, rate=_RATE)
    (folder / "good.wav").write_bytes(sound)
    block = rich_exif()
    picture = jpeg(segment(0xE1, b"Exif\0\0" + block))
    files = {"exif": (picture, 12, 12 + len(block)), "wav": (sound, 0, sound.index(samples))}
    for kind, options in _ENCODERS.items():
        source = ffmpeg.input(tools.file_url(folder / "good.wav"))
        exact = {"fflags": "+bitexact", "flags": "+bitexact", "map_metadata": -1}
        output = source.output(tools.file_url(folder / kind), **options, **exact)
        tools.run(output, doing="making a file", error=PermanentError)
        content = (folder / kind).read_bytes()
        files[kind] = (content, 0, content.find(b"mdat") if kind == "m4a" else 600)
    return files


def rich_exif() -> bytes:
    """Return EXIF with entries of many types, a directory of the exposure and one of the place."""
    found = Image.Exif()
    found[0x010F], found[0x0112], found[0x011A], found[0x0132] = "A maker", 6, 72.5, "2026:11:20 12:00:00"
    found.get_ifd(0x8769).update({0x829A: 0.01, 0x9000: b"0230", 0x9204: -0.5, 0x927C: bytes(range(40))})
    found.get_ifd(0x8825).update({1: "N", 2: (47.0, 22.0, 8.5), 5: b"\0", 6: 410.25})
    return found.tobytes().removeprefix(b"Exif\0\0")


def altered(content: bytes, start: int, end: int, rng: random.Random) -> bytes:
    """Return the file with one to three changes between `start` and `end`; one file in twenty is cut off there."""
    data = bytearray(content)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        at = rng.randrange(start, min(end, len(data)))
        match rng.choice([0, 0, 1, 1, 2, 2, 3, 4]):
            case 0:
                data[at] ^= 1 << rng.randrange(8)
            case 1:
                data[at] = rng.randrange(256)
            case 2:
                width, order = rng.choice([2, 4]), rng.choice(["little", "big"])
                data[at : at + width] = (rng.choice(_EXTREMES) % (1 << 8 * width)).to_bytes(width, order)
            case 3:
                data[at : at + rng.randrange(1, 9)] = b""
            case 4:
                data[at:at] = rng.choice([rng.randbytes(rng.randrange(1, 9)), bytes(content[start:at])])
    return bytes(data[: rng.randrange(start, end)] if rng.random() < 0.05 else data)


def altered_ogg(content: bytes, start: int, end: int, rng: random.Random) -> bytes:
    """Return the file with changes, and in three files of four with right checksums of its pages."""
    data = bytearray(altered(content, start, end, rng))
    if rng.random() < 0.25:
        return bytes(data)
    page = data.find(b"OggS")
    while 0 <= page <= len(data) - 27:
        body = page + 27 + data[page + 26]
        page_end = body + sum(data[page + 27 : body])
        data[page + 22 : page + 26] = bytes(4)
        data[page + 22 : page + 26] = ogg_checksum(data[page:page_end]).to_bytes(4, "little")
        page = data.find(b"OggS", page + 27)
    return bytes(data)


def ogg_checksum(page: bytes) -> int:
    """Return the CRC-32 of a page, as Ogg defines it: not reflected, without initial and final inversion."""
    checksum = 0
    for byte in page:
        checksum = _CHECKSUMS[checksum >> 24 ^ byte] ^ checksum << 8 & 0xFFFFFFFF
    return checksum


def _checksum(byte: int) -> int:
    value = byte << 24
    for _ in range(8):
        value = (value << 1 ^ (0x04C11DB7 if value >> 31 else 0)) & 0xFFFFFFFF
    return value


_CHECKSUMS = [_checksum(byte) for byte in range(256)]


def altered_exif(content: bytes, start: int, end: int, rng: random.Random) -> bytes:
    """Return the picture with altered EXIF whose segment is whole, so that the pixels stay readable."""
    block = altered(content[:end], start, end, rng)[start:]
    return content[: start - 8] + struct.pack(">H", len(block) + 8) + content[start - 6 : start] + block + content[end:]


_ALTERED = {"exif": altered_exif, "ogg": altered_ogg, "vorbis": altered_ogg}


def problem(kind: str, path: Path, output: Path) -> str | None:
    """Read a file; return None for a good result, else the sentence of the refusal. Other errors are faults."""
    try:
        if kind == "exif":
            normalise_image(path, output)
            with Image.open(output) as image:
                assert image.size in {(60, 40), (40, 60)}, image.size
            return None
        info = normalise_speech(path, output, max_duration_seconds=60)
    except PermanentError as error:
        message = str(error)
        assert kind != "exif", message
        assert path.name in message, message
        assert "\n" not in message, message
        assert f"took longer than {LIMIT_SECONDS} s" not in message, message
        return message
    waveform, sample_rate = soundfile.read(output)
    assert sample_rate == SPEECH_SAMPLE_RATE
    assert abs(Fraction(len(waveform), SPEECH_SAMPLE_RATE) - info.duration_seconds) < Fraction(1, 1000)
    assert bool(np.isfinite(waveform).all())
    return None


def limit_time() -> None:
    """Stop each ffmpeg process after `LIMIT_SECONDS`."""
    running = tools._running

    def limited(command, doing, error, timeout_seconds=LIMIT_SECONDS, **options):  # type: ignore[no-untyped-def]
        return running(command, doing, error, min(timeout_seconds, LIMIT_SECONDS), **options)

    tools._running = limited


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--kinds", nargs="+", default=KINDS, choices=KINDS)
    options.add_argument("--count", type=int, default=8, help="files of each kind")
    options.add_argument("--seed", type=int, default=14)
    options.add_argument("--keep", type=Path, help="folder for files that are read wrongly")
    given = options.parse_args()
    limit_time()
    faults, slowest, outcomes = [], (0.0, ""), Counter[str]()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = good_files(folder)
        for kind in given.kinds:
            for number in range(given.count):
                rng = random.Random(f"{given.seed} {kind} {number}")
                path = folder / f"{kind}-{number}"
                path.write_bytes(_ALTERED.get(kind, altered)(*files[kind], rng))
                started = time.monotonic()
                try:
                    refusal = problem(kind, path, folder / "output")
                    outcomes[f"{kind} {'refused' if refusal else 'accepted'}"] += 1
                except Exception:  # noqa: BLE001 - each fault is reported
                    faults.append(f"{path.name}: {traceback.format_exc()}")
                    if given.keep:
                        (given.keep / path.name).write_bytes(path.read_bytes())
                slowest = max(slowest, (round(time.monotonic() - started, 2), path.name))
                path.unlink()
    own = int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
    peak_bytes = max(own, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss) * 1024
    result = {"faults": faults, "outcomes": outcomes, "slowest": slowest, "peak_bytes": peak_bytes}
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
