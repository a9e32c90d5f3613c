"""Find the samples of WAV, AIFF and CAF files whose sizes are wrong or missing."""

import struct
from collections.abc import Callable
from mmap import ACCESS_READ, mmap
from pathlib import Path

import numpy as np
import pytest

from s2v_tasks.media.audio_files import missing_end
from s2v_tasks.media.speech import normalise_speech
from s2v_tasks.media.wav_scan import find_audio

Found = Callable[[bytes], bytes | str]

RATE = 8000
PLACEHOLDERS = [0, 0xFFFFFFFF, 0x7FFFFFFF, 0x7FFFF000, 0x80000000, 2_000_000_000, 1_000_000_000, 0xFFFFFFFF - 36]


def speech(num_samples: int, seed: int = 1) -> bytes:
    """16-bit samples as quiet as speech, which begin with some silence."""
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
    """Return the same with another size of the whole file."""
    return data[:4] + struct.pack("<I", size) + data[8:]


@pytest.fixture
def found(tmp_path: Path) -> Found:
    """Return all samples that are found in a file of these bytes, or the message."""

    def find(data: bytes) -> bytes | str:
        (tmp_path / "a").write_bytes(data)
        with (tmp_path / "a").open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as mapped:
            audio = find_audio(mapped)
            return audio if isinstance(audio, str) else b"".join(mapped[s.start : s.end] for s in audio)

    return find


ONE, TWO, THREE = speech(800), speech(700, 2), speech(901, 3)
LIST = chunk(b"LIST", b"INFOISFT" + struct.pack("<I", 4) + b"me!\0")


@pytest.mark.parametrize("size", PLACEHOLDERS)
@pytest.mark.parametrize("behind", [b"", LIST, LIST + chunk(b"id3 ", b"ID3\3" + bytes(9)), wav(TWO)])
def test_size_that_cannot_be_true_is_unknown(size: int, behind: bytes, found: Found) -> None:
    """The samples extend to the end, to the metadata or to the next file, for any placeholder."""
    expected = ONE + (TWO if behind[:4] == b"RIFF" else b"")
    assert found(old_riff(wav(ONE, size=size, behind=behind))) == expected


@pytest.mark.parametrize("size", [len(ONE) + 1, len(ONE) + 2, 3 * len(ONE), 100_000_000, 999_999_999])
def test_size_that_could_be_true_means_cut_off(size: int, found: Found) -> None:
    """A file that lacks samples is refused with both numbers, unless its own size says that it is complete."""
    expected = f"its header announces {size} bytes of audio, 1600 are there"
    assert found(old_riff(wav(ONE, size=size), size + 36)) == expected
    assert found(wav(ONE, size=size)) == ONE


@pytest.mark.parametrize("lost_bytes", [*range(1, 50), 500, 1599, 1600])
def test_every_cut_of_a_wav_is_found(lost_bytes: int, found: Found) -> None:
    """One lost byte is detected; a header without samples is refused, too."""
    assert found(wav(ONE)[:-lost_bytes]) == f"its header announces 1600 bytes of audio, {1600 - lost_bytes} are there"


@pytest.mark.parametrize("num_bytes", [12, 15, 20, 30, 36, 40, 43])
def test_cut_inside_the_header_is_said(num_bytes: int, found: Found) -> None:
    """A file that ends before its samples is no silence."""
    assert any(
        words in found(wav(ONE)[:num_bytes]) for words in ("before its audio data", "so no audio data", "are there")
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
    """Chunks known or unknown, tags and zeros add nothing, and odd sizes without padding lose nothing."""
    assert found(wav(ONE, behind=behind)) == ONE
    assert found(wav(ONE, behind=behind) + wav(TWO)) == ONE + TWO


@pytest.mark.parametrize("name", [b"LIST", b"bext", b"iXML", b"_PMX", b"id3 ", b"ID3 ", b"cue ", b"smpl", b"PEAK"])
def test_metadata_behind_audio_of_unknown_size_is_left_out(name: bytes, found: Found) -> None:
    """Every chunk that programs write there is known, and only if it reaches exactly to the end."""
    data = wav(ONE, size=0, behind=chunk(name, b"text of nine"))
    assert found(data) == ONE
    assert found(data + b"?") != ONE


@pytest.mark.parametrize("size", [200, 202, 601, 1000])
def test_header_of_an_earlier_moment_loses_nothing(size: int, found: Found) -> None:
    """Samples behind the announced size are used, up to the metadata or the next file."""
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
    """In each sample format samples behind the announced size are used; text and random bytes are refused."""
    samples, size = _in(bits, codec), 40 * channels * bits // 8
    kind = {"bits": bits, "codec": codec, "channels": channels}
    assert found(old_riff(wav(samples, size=size, **kind))) == samples
    for other in (np.random.default_rng(5).bytes(3000), b"<html><body>Too many requests</body></html>" * 9):
        expected = f"its header announces {len(samples)} bytes of audio, and the {len(other)} bytes behind them are"
        assert str(found(wav(samples, **kind) + other)).startswith(expected)


def test_loud_sound_continues_loud_sound(found: Found) -> None:
    """Samples as loud as those before them continue them, even at full scale."""
    loud = np.where(np.arange(1000) % 7 < 3, 32000, -32000).astype("<i2").tobytes()
    assert found(old_riff(wav(loud, size=500))) == loud
    assert isinstance(found(old_riff(wav(ONE)) + loud), str)


@pytest.mark.parametrize("codec", [1, 2, 6, 7, 0x11])
def test_bytes_behind_samples_of_a_byte_are_refused(codec: int, found: Found) -> None:
    """Samples of a codec, or of 8 bits, cannot be distinguished from other bytes."""
    data = old_riff(wav(ONE, size=600, codec=codec, bits=8))
    assert "600 bytes of audio, and the 1000 bytes behind them" in str(found(data))


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
    """A chunk of odd size is padded or not."""
    assert found(wav(ONE, before=before)) == ONE


def test_chunk_that_does_not_fit_is_named(found: Found) -> None:
    """A LIST chunk with a wrong size hides the samples: the message names it and the bytes that are there."""
    text = found(wav(ONE, before=chunk(b"LIST", b"INFO", size=4_000_000_000)))
    assert (
        text == "its chunk 'LIST' at byte 36 announces 4000000000 bytes, 1612 are there, and no audio comes before it"
    )


def test_sound_without_description_is_refused(found: Found) -> None:
    """Samples of unknown rate and size are not guessed."""
    good = wav(ONE)
    assert "'fmt ' before its audio data has 0 bytes" in str(found(good[:12] + good[36:]))
    assert "'fmt ' before its audio data has 14 bytes" in str(
        found(good[:12] + chunk(b"fmt ", good[20:34]) + good[36:])
    )
    assert "no chunk 'data'" in str(found(good[:36] + LIST))
    assert "no chunk 'data'" in str(found(good + good[:36] + LIST))


def test_number_of_chunks_is_bounded(found: Found) -> None:
    """A thousand chunks are read, before the samples and behind them."""
    few, many = chunk(b"JUNK", b"") * 900, chunk(b"JUNK", b"") * 1000
    assert found(wav(ONE, before=few, behind=LIST)) == ONE
    assert "1000 chunks" in str(found(wav(ONE, before=many)))
    assert "1000 chunks" in str(found(wav(ONE, behind=many)))


@pytest.mark.parametrize("between", [b"", b"\0", LIST, bytes(300), b"TAG" + bytes(125)])
def test_concatenated_files_are_decoded_completely(between: bytes, found: Found) -> None:
    """Three concatenated files have three sets of samples, with any bytes between them."""
    assert found(wav(ONE) + between + wav(TWO, channels=2, rate=44100) + between + wav(THREE)) == ONE + TWO + THREE


def test_second_chunk_of_samples_is_used(found: Found) -> None:
    """A recorder may begin a new data chunk in the same file."""
    assert found(wav(ONE, behind=LIST + chunk(b"data", TWO))) == ONE + TWO


@pytest.mark.parametrize("lost_bytes", [1, 2, 600])
def test_cut_in_joined_files_is_found(lost_bytes: int, found: Found) -> None:
    """A lost end is detected in the first file, where the next one begins too early, and in the last."""
    expected = f"its header announces 1600 bytes of audio, {1600 - lost_bytes} are there"
    assert found(wav(ONE)[:-lost_bytes] + wav(TWO)) == expected
    assert found(wav(TWO) + wav(ONE)[:-lost_bytes]) == expected


def test_header_made_for_joined_files_covers_them(found: Found) -> None:
    """Later headers are left out if the first one was corrected to the size of all files."""
    assert found(wav(ONE, size=len(ONE + wav(TWO))) + wav(TWO)) == ONE + TWO


def rf64(name: bytes, size: int, wide_size: int) -> bytes:
    ds64 = chunk(b"ds64", struct.pack("<QQQI", 0xFFFFFFFF, wide_size, 0, 0))
    return name + b"\xff\xff\xff\xffWAVE" + ds64 + layout() + chunk(b"data", ONE, size)


@pytest.mark.parametrize("name", [b"RF64", b"BW64"])
def test_wide_sizes_are_read(name: bytes, found: Found) -> None:
    """In RF64 and BW64 the size stands in ds64, or it is unknown there, too."""
    assert found(rf64(name, 0xFFFFFFFF, len(ONE)) + LIST) == ONE
    assert found(rf64(name, len(ONE), 5) + LIST) == ONE
    for unknown in (0, 2**64 - 1, 2**63, 2_000_000_000):
        assert found(rf64(name, 0xFFFFFFFF, unknown) + LIST) == ONE
    expected = "its header announces 1602 bytes of audio, 1600 are there"
    assert found(rf64(name, 0xFFFFFFFF, 1602)) == expected


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


@pytest.mark.parametrize("make", [w64, aiff, caf])
def test_other_families_follow_the_same_rules(make: Callable[..., bytes], found: Found) -> None:
    """Wave64, AIFF and CAF are joined, read to their end, or refused with the numbers, as WAV is."""
    assert found(make(ONE)) == ONE
    assert found(make(ONE) + bytes(600)) == ONE
    assert found(make(ONE) + make(TWO) + make(THREE)) == ONE + TWO + THREE
    assert found(make(ONE)[:-8]) == "its header announces 1600 bytes of audio, 1592 are there"
    assert found(make(ONE)[:-8] + make(TWO)) == "its header announces 1600 bytes of audio, 1592 are there"
    assert "and the 3000 bytes behind" in str(found(make(ONE) + np.random.default_rng(5).bytes(3000)))


@pytest.mark.parametrize("size", [-24, 0, 2_000_000_000, 2**63 - 25])
def test_unknown_size_of_a_wave64(size: int, found: Found) -> None:
    """A placeholder is unknown there, too."""
    assert found(w64(ONE, size)) == ONE


@pytest.mark.parametrize("size", [-5, -4, 0, 2_000_000_000])
def test_unknown_size_of_a_caf(size: int, found: Found) -> None:
    """-1 is the format's own placeholder."""
    assert found(caf(ONE, size)) == ONE


@pytest.mark.parametrize("size", [-8, 0, 0x7F000000, None])
@pytest.mark.parametrize("frames", [0, 0x7F000000, 800])
def test_unknown_size_of_an_aiff(size: int | None, frames: int, found: Found) -> None:
    """One of its two sizes is enough, and none is needed."""
    assert found(aiff(ONE, size, frames)) == ONE


def test_sizes_of_an_aiff_that_announce_more_than_is_there(found: Found) -> None:
    """The number of frames shows a cut, too."""
    assert found(aiff(ONE, frames=1000)) == "its header announces 2000 bytes of audio, 1600 are there"
    data = aiff(ONE, size=0, frames=1000)
    assert found(data[:4] + bytes(4) + data[8:]) == "its header announces 2000 bytes of audio, 1600 are there"


@pytest.mark.parametrize("make", [aiff, caf])
def test_compressed_sound_is_left_as_it_is_or_refused(make: Callable[..., bytes], found: Found) -> None:
    """For formats whose header cannot be written anew, only a valid file is accepted."""
    assert found(make(ONE, codec=b"ima4")) == ONE
    assert found(make(ONE, codec=b"ima4") + make(TWO, codec=b"ima4")) == "it is joined from 2 files"
    assert found(make(ONE, codec=b"ima4") + bytes(60)) == "its sizes contradict each other"


def big_endian(samples: bytes) -> bytes:
    return np.frombuffer(samples, "<i2").astype(">i2").tobytes()


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
    """The samples are those of the plain WAV."""
    (tmp_path / name).write_bytes(SAME[name])
    (tmp_path / "plain.wav").write_bytes(wav(ONE))
    for source in ("plain.wav", name):
        info = normalise_speech(tmp_path / source, tmp_path / f"{source}.out", max_duration_seconds=9)
        assert info.num_samples == 800
    assert (tmp_path / f"{name}.out").read_bytes() == (tmp_path / "plain.wav.out").read_bytes()


def test_eight_bits_of_odd_length_are_joined(found: Found) -> None:
    """A file of 8-bit samples with an odd number of them is padded or not."""
    odd = bytes(range(100, 151))
    padded = wav(odd, bits=8)
    assert found(padded + padded[:-1] + padded + LIST) == odd * 3
    assert found(padded[:-1] + LIST) == odd


def test_random_headers_are_never_a_traceback(found: Found, tmp_path: Path) -> None:
    """For any sizes and names, samples are found in the file or one line says what is wrong."""
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
    """If the size is 0, all bytes that follow are audio, also compressed and loud."""
    loud = np.random.default_rng(4).bytes(2000)
    assert found(old_riff(wav(loud, size=0, **kind))) == loud


def test_search_ends_behind_the_first_file_too_many(found: Found) -> None:
    """The 101st file is found, so that the speech is refused; there is no need to look further."""
    assert found(wav(ONE[:20]) * 101) == ONE[:20] * 101
    assert found(wav(ONE[:20]) * 103) == ONE[:20] * 101
