"""Check the search for the samples of WAV files whose sizes are wrong or missing."""

from collections.abc import Callable

import numpy as np
import pytest

from tests.unit.media.wav_bytes import (
    LIST,
    ONE,
    THREE,
    TWO,
    chunk,
    old_riff,
    wav,
)

Found = Callable[[bytes], bytes | str]

PLACEHOLDERS = [0, 0xFFFFFFFF, 0x7FFFFFFF, 0x7FFFF000, 0x80000000, 2_000_000_000, 1_000_000_000, 0xFFFFFFFF - 36]


@pytest.mark.parametrize("size", PLACEHOLDERS)
@pytest.mark.parametrize("behind", [b"", LIST, LIST + chunk(b"id3 ", b"ID3\3" + bytes(9)), wav(TWO)])
def test_size_that_cannot_be_true_is_unknown(size: int, behind: bytes, found: Found) -> None:
    """With a placeholder, samples extend to the end, the metadata or the next file."""
    expected = ONE + (TWO if behind[:4] == b"RIFF" else b"")
    assert found(old_riff(wav(ONE, size=size, behind=behind))) == expected


@pytest.mark.parametrize("size", [len(ONE) + 1, len(ONE) + 2, 3 * len(ONE), 100_000_000, 999_999_999])
def test_size_that_could_be_true_means_cut_off(size: int, found: Found) -> None:
    """A file that lacks samples is refused with both numbers, unless its own size says that it is complete."""
    expected = f"its header states {size} bytes of audio, but 1600 exist"
    assert found(old_riff(wav(ONE, size=size), size + 36)) == expected
    assert found(wav(ONE, size=size)) == ONE


@pytest.mark.parametrize("lost_bytes", [*range(1, 50), 500, 1599, 1600])
def test_every_cut_of_a_wav_is_found(lost_bytes: int, found: Found) -> None:
    """One lost byte is detected, and a header without samples is refused."""
    assert found(wav(ONE)[:-lost_bytes]) == f"its header states 1600 bytes of audio, but {1600 - lost_bytes} exist"


@pytest.mark.parametrize("num_bytes", [12, 15, 20, 30, 36, 40, 43])
def test_cut_inside_the_header_is_reported(num_bytes: int, found: Found) -> None:
    """A file that ends before its samples is refused as cut."""
    assert any(
        words in found(wav(ONE)[:num_bytes]) for words in ("before its audio data", "so no audio data", " exist")
    )  # type: ignore[operator]


@pytest.mark.parametrize(
    "behind",
    [
        LIST,
        chunk(b"LIST", b"odd", pad=b""),
        chunk(b"id3 ", b"ID3\3\0\0\0\0\0\3odd"),
        chunk(b"xyz9", bytes(99)) + LIST,
        bytes(5000),
        b"TAG" + bytes(range(125)),
        b"ID3\3\0\0\0\0\0\4text",
        LIST + bytes(77),
        b"\0",
    ],
)
def test_metadata_and_padding_behind_the_audio_are_left_out(behind: bytes, found: Found) -> None:
    """Chunks, tags and zeros after the audio add no samples, and odd sizes without padding lose none."""
    assert found(wav(ONE, behind=behind)) == ONE
    assert found(wav(ONE, behind=behind) + wav(TWO)) == ONE + TWO


@pytest.mark.parametrize("name", [b"LIST", b"bext", b"iXML", b"_PMX", b"id3 ", b"ID3 ", b"cue ", b"smpl", b"PEAK"])
def test_metadata_behind_audio_of_unknown_size_is_left_out(name: bytes, found: Found) -> None:
    """Known chunks after audio of unknown size are left out if they reach exactly to the end."""
    data = wav(ONE, size=0, behind=chunk(name, b"text of nine"))
    assert found(data) == ONE
    assert found(data + b"?") != ONE


@pytest.mark.parametrize("size", [200, 202, 601, 1000])
def test_header_of_an_earlier_moment_loses_nothing(size: int, found: Found) -> None:
    """Samples after the stated size are used, up to the metadata or the next file."""
    data = old_riff(wav(ONE, size=size), size + 36)
    assert found(data) == ONE
    assert found(data + LIST) == ONE
    assert found(data + wav(TWO) + wav(THREE)) == ONE + TWO + THREE


def _in(bits: int, codec: int) -> bytes:
    samples = np.frombuffer(ONE, "<i2").astype(np.float64) / 32768
    if codec == 3:
        return samples.astype(f"<f{bits // 8}").tobytes()
    whole = (samples * 2 ** (bits - 1)).astype("<i4")
    return whole.view(np.uint8).reshape(-1, 4)[:, : bits // 8].tobytes()


@pytest.mark.parametrize(("bits", "codec"), [(16, 1), (24, 1), (32, 1), (32, 3), (64, 3)])
@pytest.mark.parametrize("channels", [1, 2])
def test_more_samples_are_distinguished_from_other_bytes(bits: int, codec: int, channels: int, found: Found) -> None:
    """Samples after the stated size are used in each sample format; text and random bytes are refused."""
    samples, size = _in(bits, codec), 40 * channels * bits // 8
    kind = {"bits": bits, "codec": codec, "channels": channels}
    assert found(old_riff(wav(samples, size=size, **kind))) == samples
    for other in (np.random.default_rng(5).bytes(3000), b"<html><body>Too many requests</body></html>" * 9):
        expected = f"its header states {len(samples)} bytes of audio, and the {len(other)} bytes after them are"
        assert str(found(wav(samples, **kind) + other)).startswith(expected)


def test_loud_sound_continues_loud_sound(found: Found) -> None:
    """Samples as loud as those before them count as their continuation, also at full scale."""
    loud = np.where(np.arange(1000) % 7 < 3, 32000, -32000).astype("<i2").tobytes()
    assert found(old_riff(wav(loud, size=500))) == loud
    assert isinstance(found(old_riff(wav(ONE)) + loud), str)


@pytest.mark.parametrize("codec", [1, 2, 6, 7, 0x11])
def test_bytes_behind_samples_of_a_byte_are_refused(codec: int, found: Found) -> None:
    """Bytes after samples of a codec or of 8 bits are refused, because they cannot be checked."""
    data = old_riff(wav(ONE, size=600, codec=codec, bits=8))
    assert "600 bytes of audio, and the 1000 bytes after them" in str(found(data))


@pytest.mark.parametrize(
    "before",
    [
        chunk(b"LIST", b"INFOodd"),
        chunk(b"LIST", b"INFOodd", pad=b""),
        chunk(b"LIST", b"INFOodd", pad=b"x"),
        chunk(b"JUNK", bytes(28)) + chunk(b"bext", b"x" * 603, pad=b""),
        bytes(80),
    ],
)
def test_odd_chunks_before_the_sound_are_passed(before: bytes, found: Found) -> None:
    """A chunk of odd size before the samples is skipped with and without padding."""
    assert found(wav(ONE, before=before)) == ONE


def test_chunk_that_does_not_fit_is_named(found: Found) -> None:
    """A LIST chunk with a wrong size is named with the bytes that exist."""
    text = found(wav(ONE, before=chunk(b"LIST", b"INFO", size=4_000_000_000)))
    assert text == "its chunk 'LIST' at byte 36 states 4000000000 bytes, but 1612 exist, and no audio comes before it"


def test_sound_without_description_is_refused(found: Found) -> None:
    """Samples of unknown rate and size are refused."""
    good = wav(ONE)
    assert "'fmt ' before its audio data has 0 bytes" in str(found(good[:12] + good[36:]))
    assert "'fmt ' before its audio data has 14 bytes" in str(
        found(good[:12] + chunk(b"fmt ", good[20:34]) + good[36:])
    )
    assert "no chunk 'data'" in str(found(good[:36] + LIST))
    assert "no chunk 'data'" in str(found(good + good[:36] + LIST))


def test_number_of_chunks_is_bounded(found: Found) -> None:
    """Up to a thousand chunks are read, before and after the samples."""
    few, many = chunk(b"JUNK", b"") * 900, chunk(b"JUNK", b"") * 1000
    assert found(wav(ONE, before=few, behind=LIST)) == ONE
    assert "1000 chunks" in str(found(wav(ONE, before=many)))
    assert "1000 chunks" in str(found(wav(ONE, behind=many)))


@pytest.mark.parametrize("between", [b"", b"\0", LIST, bytes(300), b"TAG" + bytes(125)])
def test_concatenated_files_are_decoded_completely(between: bytes, found: Found) -> None:
    """Three concatenated files have three sets of samples, with any bytes between them."""
    assert found(wav(ONE) + between + wav(TWO, channels=2, rate=44100) + between + wav(THREE)) == ONE + TWO + THREE


def test_second_chunk_of_samples_is_used(found: Found) -> None:
    """A second data chunk in the same file is read."""
    assert found(wav(ONE, behind=LIST + chunk(b"data", TWO))) == ONE + TWO


@pytest.mark.parametrize("lost_bytes", [1, 2, 600])
def test_cut_in_joined_files_is_found(lost_bytes: int, found: Found) -> None:
    """A lost end is detected in the first file, where the next one begins too early, and in the last."""
    expected = f"its header states 1600 bytes of audio, but {1600 - lost_bytes} exist"
    assert found(wav(ONE)[:-lost_bytes] + wav(TWO)) == expected
    assert found(wav(TWO) + wav(ONE)[:-lost_bytes]) == expected


def test_header_made_for_joined_files_covers_them(found: Found) -> None:
    """Later headers are left out if the first header states the size of all files."""
    assert found(wav(ONE, size=len(ONE + wav(TWO))) + wav(TWO)) == ONE + TWO
