"""Check RF64, Wave64, AIFF and CAF files whose sizes are wrong or missing."""

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from s2v_tasks.media.audio_files import missing_end
from s2v_tasks.media.speech import normalise_speech
from s2v_tasks.media.speech_source import open_speech
from tests.unit.media.wav_bytes import (
    LIST,
    ONE,
    RATE,
    THREE,
    TWO,
    aiff,
    big_endian,
    caf,
    chunk,
    old_riff,
    rf64,
    w64,
    wav,
)

Found = Callable[[bytes], bytes | str]


@pytest.mark.parametrize("name", [b"RF64", b"BW64"])
def test_wide_sizes_are_read(name: bytes, found: Found) -> None:
    """The size of RF64 and BW64 is read from ds64; it may be unknown there, too."""
    assert found(rf64(name, 0xFFFFFFFF, len(ONE)) + LIST) == ONE
    assert found(rf64(name, len(ONE), 5) + LIST) == ONE
    for unknown in (0, 2**64 - 1, 2**63, 2_000_000_000):
        assert found(rf64(name, 0xFFFFFFFF, unknown) + LIST) == ONE
    expected = "its header states 1602 bytes of audio, but 1600 exist"
    assert found(rf64(name, 0xFFFFFFFF, 1602)) == expected


@pytest.mark.parametrize("make", [w64, aiff, caf])
def test_other_families_follow_the_same_rules(make: Callable[..., bytes], found: Found) -> None:
    """Wave64, AIFF and CAF files are joined, read to their end, or refused with numbers, like WAV files."""
    assert found(make(ONE)) == ONE
    assert found(make(ONE) + bytes(600)) == ONE
    assert found(make(ONE) + make(TWO) + make(THREE)) == ONE + TWO + THREE
    assert found(make(ONE)[:-8]) == "its header states 1600 bytes of audio, but 1592 exist"
    assert found(make(ONE)[:-8] + make(TWO)) == "its header states 1600 bytes of audio, but 1592 exist"
    assert "and the 3000 bytes after them" in str(found(make(ONE) + np.random.default_rng(5).bytes(3000)))


@pytest.mark.parametrize("size", [-24, 0, 2_000_000_000, 2**63 - 25])
def test_unknown_size_of_a_wave64(size: int, found: Found) -> None:
    """A placeholder in Wave64 is an unknown size."""
    assert found(w64(ONE, size)) == ONE


@pytest.mark.parametrize("size", [-5, -4, 0, 2_000_000_000])
def test_unknown_size_of_a_caf(size: int, found: Found) -> None:
    """The format's own placeholder -1 is an unknown size."""
    assert found(caf(ONE, size)) == ONE


@pytest.mark.parametrize("size", [-8, 0, 0x7F000000, None])
@pytest.mark.parametrize("frames", [0, 0x7F000000, 800])
def test_unknown_size_of_an_aiff(size: int | None, frames: int, found: Found) -> None:
    """One of the two sizes suffices, and both may be missing."""
    assert found(aiff(ONE, size, frames)) == ONE


def test_sizes_of_an_aiff_that_announce_more_than_is_there(found: Found) -> None:
    """A number of frames above the existing ones shows a cut."""
    assert found(aiff(ONE, frames=1000)) == "its header states 2000 bytes of audio, but 1600 exist"
    data = aiff(ONE, size=0, frames=1000)
    assert found(data[:4] + bytes(4) + data[8:]) == "its header states 2000 bytes of audio, but 1600 exist"


@pytest.mark.parametrize("make", [aiff, caf])
def test_compressed_sound_is_left_as_it_is_or_refused(make: Callable[..., bytes], found: Found) -> None:
    """A compressed file whose header is wrong is refused; a valid one is accepted."""
    assert found(make(ONE, codec=b"ima4")) == ONE
    assert found(make(ONE, codec=b"ima4") + make(TWO, codec=b"ima4")) == "it is joined from 2 files"
    assert found(make(ONE, codec=b"ima4") + bytes(60)) == "its sizes contradict each other"


EXTENSIBLE = struct.pack("<HHIIHHHHI", 0xFFFE, 1, RATE, 2 * RATE, 2, 16, 22, 16, 4) + bytes.fromhex(
    "0100000000001000800000aa00389b71"
)


SAME = {
    "placeholder.wav": wav(ONE, size=0x7FFFFFFF),
    "odd.wav": wav(ONE, before=chunk(b"LIST", b"INFOodd", pad=b"")),
    "early.wav": old_riff(wav(ONE, size=600)) + b"\1",
    "metadata.wav": wav(ONE, size=0, behind=LIST),
    "extensible.wav": b"RIFF\0\0\0\0WAVE" + chunk(b"fmt ", EXTENSIBLE) + chunk(b"data", ONE, 0),
    "wide.wav": rf64(b"RF64", 0xFFFFFFFF, 2**64 - 1),
    "wide.bwf": rf64(b"BW64", 0xFFFFFFFF, len(ONE)),
    "two.wav": wav(ONE[:400]) + wav(ONE[400:]),
    "chunks.wav": wav(ONE[:400], behind=chunk(b"data", ONE[400:])),
    "broken-sample.wav": wav(ONE + b"\1"),
    "unknown.w64": w64(ONE, 0),
    "padded.w64": w64(ONE) + bytes(500),
    "unknown.aiff": aiff(big_endian(ONE), 0, 0),
    "frames.aiff": aiff(big_endian(ONE), frames=0),
    "little.aifc": aiff(ONE, 0, 0, codec=b"sowt\0\0"),
    "unknown.caf": caf(ONE, -5),
    "padded.caf": caf(ONE) + bytes(300),
}


@pytest.mark.parametrize("name", SAME)
def test_sound_with_wrong_sizes_is_the_same_speech(name: str, tmp_path: Path) -> None:
    """The samples equal those of the plain WAV."""
    (tmp_path / name).write_bytes(SAME[name])
    (tmp_path / "plain.wav").write_bytes(wav(ONE))
    for source in ("plain.wav", name):
        info = normalise_speech(tmp_path / source, tmp_path / f"{source}.out", max_duration_seconds=9)
        assert info.num_samples == 800
    assert (tmp_path / f"{name}.out").read_bytes() == (tmp_path / "plain.wav.out").read_bytes()


def test_eight_bits_of_odd_length_are_joined(found: Found) -> None:
    """An odd number of 8-bit samples is joined with and without padding."""
    odd = bytes(range(100, 151))
    padded = wav(odd, bits=8)
    assert found(padded + padded[:-1] + padded + LIST) == odd * 3
    assert found(padded[:-1] + LIST) == odd


def test_random_headers_are_never_a_traceback(found: Found, tmp_path: Path) -> None:
    """For any sizes and names, samples are found or one line says what is wrong."""
    rng = np.random.default_rng(11)
    files = [wav(ONE, behind=LIST), wav(ONE) + wav(TWO), rf64(b"RF64", 0xFFFFFFFF, 1600), w64(ONE), aiff(ONE), caf(ONE)]
    outcomes = {bytes: 0, str: 0}
    for number in range(600):
        data = bytearray(files[number % len(files)])
        for _ in range(rng.integers(1, 6)):
            at = int(rng.integers(4, 110))
            data[at : at + 4] = rng.choice([b"\0\0\0\0", b"\xff\xff\xff\xff", rng.bytes(4), rng.bytes(1), b""])
        for file_format in ("wav", "caf"):
            (tmp_path / "b").write_bytes(data)
            assert "\n" not in (missing_end(tmp_path / "b", file_format) or "")
        outcomes[type(found(bytes(data)))] += 1
    assert min(outcomes.values()) > 60


@pytest.mark.parametrize("kind", [{"codec": 6, "bits": 8}, {"codec": 2, "bits": 8}, {}])
def test_sound_of_unknown_size_need_not_look_like_speech(kind: dict[str, int], found: Found) -> None:
    """With size 0 all following bytes are audio, also compressed and loud ones."""
    loud = np.random.default_rng(4).bytes(2000)
    assert found(old_riff(wav(loud, size=0, **kind))) == loud


def test_search_ends_behind_the_first_file_too_many(found: Found) -> None:
    """The search ends at the 101st joined file, which refuses the speech."""
    assert found(wav(ONE[:20]) * 101) == ONE[:20] * 101
    assert found(wav(ONE[:20]) * 103) == ONE[:20] * 101


@pytest.mark.parametrize(("bits", "valid"), [(24, 16), (32, 16), (32, 20), (32, 24), (24, 20), (16, 12), (16, 16)])
def test_fewer_valid_bits_do_not_change_the_width_of_a_sample(bits: int, valid: int, tmp_path: Path) -> None:
    """Samples of 24 valid bits in 32, as sound cards give them, are decoded by their stored width."""
    stored = np.frombuffer(ONE, "<i2").astype("<i4") >> 16 - min(valid, 16) << 32 - min(valid, 16)
    samples = stored.view(np.uint8).reshape(-1, 4)[:, 4 - bits // 8 :].tobytes()
    guid = bytes.fromhex("0100000000001000800000aa00389b71")
    width = bits // 8
    description = struct.pack("<HHIIHHHHI", 0xFFFE, 1, RATE, RATE * width, width, bits, 22, valid, 4) + guid
    body = b"WAVE" + chunk(b"fmt ", description) + chunk(b"data", samples)
    (tmp_path / "a.wav").write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)
    with open_speech(tmp_path / "a.wav", tmp_path, max_duration_seconds=9) as speech:
        decoded = np.concatenate(list(speech.blocks()))[:, 0]
    assert np.array_equal(decoded, stored / np.float32(2**31))
