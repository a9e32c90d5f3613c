"""Check MP3 files as speech: cut, joined, or with junk after them."""

from collections.abc import Callable
from mmap import mmap
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from s2v_tasks.media import mp3 as mp3_frames
from s2v_tasks.media.mp3 import after_tags, before_tags
from s2v_tasks.media.speech import normalise_speech

Noise = Callable[..., npt.NDArray[np.float64]]
WriteWav = Callable[..., Path]
Convert = Callable[..., Path]
Refusal = Callable[..., str]
MakeMp3 = Callable[..., Path]


@pytest.fixture
def mp3(tmp_path: Path, noise: Noise, write_wav: WriteWav, convert: Convert) -> MakeMp3:
    """Makes an MP3 file of two seconds, with the encoder's options."""

    def make(name: str = "a.mp3", **options: str | int) -> Path:
        wav = write_wav(tmp_path / "source.wav", noise(2 * 44100), 44100)
        return convert(wav, tmp_path / name, acodec="libmp3lame", **options)

    return make


@pytest.mark.parametrize("kept_bytes", [4, 7, 8, 11])
def test_a_file_that_ends_inside_a_xing_header_is_refused(kept_bytes: int, mp3: MakeMp3, refusal: Refusal) -> None:
    """A second MP3 that is cut off inside its Xing header is a damaged file, whose name the message has."""
    source = mp3(audio_bitrate="64k", id3v2_version=0)
    content = source.read_bytes()
    source.write_bytes(content + content[: content.index(b"Info") + kept_bytes])
    assert "cut off" in refusal(source)


@pytest.mark.parametrize("options", [{"audio_bitrate": "64k"}, {"q:a": 4}, {"audio_bitrate": "64k", "write_xing": 0}])
@pytest.mark.parametrize("lost_bytes", [1, 77, 9000])
def test_truncated_mp3_is_refused(options: dict[str, str], lost_bytes: int, mp3: MakeMp3, refusal: Refusal) -> None:
    """An MP3 that ends inside a frame is refused, with or without a Xing header."""
    source = mp3(**options)
    source.write_bytes(source.read_bytes()[:-lost_bytes])
    assert "cut off" in refusal(source)


APE_FOOTER = b"APETAGEX" + (2000).to_bytes(4, "little") + (32).to_bytes(4, "little") + bytes(16)
JUNK = {
    "zeros": bytes(4096),
    "ID3v1": b"TAG".ljust(128, b"x"),
    "APE and ID3v1": b"x" * 500 + APE_FOOTER + b"TAG".ljust(128, b"x"),
    "noise": np.random.default_rng(3).bytes(4096),
}


@pytest.mark.parametrize("junk", JUNK)
@pytest.mark.parametrize("options", [{"audio_bitrate": "64k"}, {"q:a": 4}, {"audio_bitrate": "64k", "write_xing": 0}])
def test_junk_behind_an_mp3_is_left_out(
    options: dict[str, str], junk: str, tmp_path: Path, mp3: MakeMp3, refusal: Refusal
) -> None:
    """Tags, padding and junk after the last frame change no sample and do not hide a cut."""
    source = mp3(**options)
    plain = normalise_speech(source, tmp_path / "plain.wav", max_duration_seconds=9)
    data = source.read_bytes()
    source.write_bytes(data + JUNK[junk])
    assert normalise_speech(source, tmp_path / "junk.wav", max_duration_seconds=9) == plain
    assert (tmp_path / "junk.wav").read_bytes() == (tmp_path / "plain.wav").read_bytes()
    if "write_xing" not in options:
        source.write_bytes(data[:-900] + JUNK[junk])
        assert "cut off" in refusal(source)


@pytest.mark.parametrize(
    "options", [{}, {"write_xing": 0}, {"id3v2_version": 0}, {"write_id3v1": 1, "metadata": "title=x"}]
)
def test_concatenated_mp3s_are_decoded_completely(
    options: dict[str, str], tmp_path: Path, mp3: MakeMp3, refusal: Refusal
) -> None:
    """Two MP3 files joined by `cat` last as long as both, but for the encoder's delay of at most 0.1 s."""
    one = mp3("one.mp3", **options).read_bytes()
    (tmp_path / "a.mp3").write_bytes(one + one)
    info = normalise_speech(tmp_path / "a.mp3", tmp_path / "16k.wav", max_duration_seconds=9)
    assert 4 <= info.duration_seconds <= 4.1
    for lost_bytes in (300, 3000):
        (tmp_path / "a.mp3").write_bytes(one[:-lost_bytes] + one)
        assert "re-export the file" in refusal(tmp_path / "a.mp3")
        (tmp_path / "a.mp3").write_bytes(one + one[:-lost_bytes])
        assert "re-export the file" in refusal(tmp_path / "a.mp3")


@pytest.mark.parametrize(("sample_rate", "channels"), [(48000, 1), (44100, 2)])
def test_unlike_joined_mp3s_are_refused(
    sample_rate: int,
    channels: int,
    tmp_path: Path,
    noise: Noise,
    write_wav: WriteWav,
    convert: Convert,
    refusal: Refusal,
) -> None:
    """A second part with another sample rate or number of channels is refused."""
    formats = [(44100, 1), (sample_rate, channels)]
    wavs = [write_wav(tmp_path / f"{i}.wav", noise(rate, num), rate) for i, (rate, num) in enumerate(formats)]
    parts = [convert(wav, wav.with_suffix(".mp3"), acodec="libmp3lame").read_bytes() for wav in wavs]
    (tmp_path / "a.mp3").write_bytes(b"".join(parts))
    assert "unlike MP3 files" in refusal(tmp_path / "a.mp3")


@pytest.mark.parametrize("whole_frames", [True, False])
def test_hole_in_an_mp3_without_xing_header_is_refused(
    whole_frames: bool, tmp_path: Path, mp3: MakeMp3, refusal: Refusal
) -> None:
    """Zeros between frames are refused, unless a new file begins after them."""
    whole = mp3("whole.mp3", write_xing=0, id3v2_version=0, audio_bitrate="64k")
    data = bytearray(whole.read_bytes())
    start = data.index(data[:2], 5000)
    end = data.index(data[:2], start + 800) - (0 if whole_frames else 60)
    data[start:end] = bytes(end - start)
    (tmp_path / "a.mp3").write_bytes(data)
    assert "are not MP3 frames" in refusal(tmp_path / "a.mp3")


def test_zeros_instead_of_most_of_an_mp3_are_refused(mp3: MakeMp3, refusal: Refusal) -> None:
    """A file whose larger part is zeros, as of an interrupted download, is refused."""
    source = mp3(write_xing=0)
    source.write_bytes(source.read_bytes() + bytes(100_000))
    assert "its last 100000 bytes are not MP3 frames" in refusal(source)


@pytest.mark.parametrize("data", [b"To be, or not to be\n" * 500, np.random.default_rng(5).bytes(50_000)])
def test_a_file_that_is_no_mp3_is_refused(data: bytes, tmp_path: Path, refusal: Refusal) -> None:
    """Text and random bytes with the name of an MP3 are refused."""
    (tmp_path / "a.mp3").write_bytes(data)
    assert refusal(tmp_path / "a.mp3")


SOUND = bytes(range(1, 200)) * 5
TAGS = [b"ID3\3" + bytes(6), b"TAG".ljust(128, b"x"), APE_FOOTER, b"ID3\4\0\0\0\0\0\7" + b"picture"]


def mapped(content: bytes) -> mmap:
    data = mmap(-1, len(content))
    data[:] = content
    return data


@pytest.mark.parametrize("tag", TAGS)
def test_many_tags_are_read_once(tag: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of tags alone costs time in proportion to its length."""
    starts = []

    def counted(data: mmap, position: int) -> int:
        starts.append(position)
        return after_tags(data, position)

    monkeypatch.setattr(mp3_frames, "after_tags", counted)
    data = mapped(SOUND + tag * 40 + b"x")
    assert before_tags(data, 0, len(data)) == len(data)
    assert starts == [len(SOUND)]
    assert before_tags(data, 0, len(data) - 1) == len(SOUND)


def test_tags_are_read_up_to_their_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """The search ends when the tags exceed their limit."""
    monkeypatch.setattr(mp3_frames, "MAX_TAG_BYTES", 100)
    assert after_tags(mapped(SOUND + TAGS[0] * 40), len(SOUND)) == len(SOUND) + 110
    assert after_tags(mapped(SOUND + TAGS[0] * 10 + b"x"), len(SOUND)) == len(SOUND) + 100


@pytest.mark.parametrize(
    "name", [b"ID3\3\x91\0\0\0\0\7", b"ID3\3\0\0\x80\0\0\7", b"ID3\3\0\0\0\0\0\x80", b"ID3\5\0\0\0\0\0\7"]
)
def test_sound_that_looks_like_a_tag_is_kept(name: bytes) -> None:
    """Audio bytes that equal the name of a tag are kept if version or size are impossible."""
    data = mapped(SOUND + name + SOUND[:7])
    assert before_tags(data, 0, len(data)) == len(data)
