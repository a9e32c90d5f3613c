"""Check the detection of audio files whose end is missing, and of files without sound."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from s2v_tasks.errors import PermanentError
from s2v_tasks.media.audio_files import audio_formats, decodable_copy, missing_end, too_much
from s2v_tasks.media.encode import Frames, encode_clip
from s2v_tasks.media.ffmpeg import tool_path
from s2v_tasks.media.mp3 import MAX_TAG_BYTES
from s2v_tasks.media.speech import normalise_speech
from tests.unit.media.wav_bytes import speech, wav


@pytest.fixture
def mp3(
    tmp_path: Path, noise: Callable[..., Any], write_wav: Callable[..., Path], convert: Callable[..., Path]
) -> bytes:
    """One second of constant bit rate MP3 with a Xing header."""
    wav = write_wav(tmp_path / "source.wav", noise(44100), 44100)
    return convert(wav, tmp_path / "source.mp3", acodec="libmp3lame", audio_bitrate="64k").read_bytes()


def _problem(tmp_path: Path, data: bytes, format_name: str = "mp3") -> str | None:
    (tmp_path / "a").write_bytes(data)
    return missing_end(tmp_path / "a", format_name)


def test_every_cut_of_an_mp3_with_xing_header_is_found(tmp_path: Path, mp3: bytes) -> None:
    """Every cut after the first frames is detected, inside a frame or between two."""
    assert _problem(tmp_path, mp3) is None
    for lost_bytes in range(1, 500):
        assert _problem(tmp_path, mp3[:-lost_bytes]), f"{lost_bytes} bytes lost"


def test_tags_around_an_mp3_are_no_damage(tmp_path: Path, mp3: bytes) -> None:
    """ID3 tags with a picture before the audio, and ID3v1 or padding after it, are not missing audio."""
    # 2048 bytes in which a walk that does not skip the tag finds frames of another stream (48 kHz, 384 bytes each).
    cover = b"ID3\x03\0\0" + bytes([0, 0, 16, 0]) + (b"\xff\xfb\x94\0".ljust(384, b"\0") * 5).ljust(2048, b"\0")
    assert _problem(tmp_path, cover + mp3 + b"TAG" + b"title".ljust(125, b"\0") + bytes(500)) is None
    assert _problem(tmp_path, cover + mp3[:-300]) is not None


def test_recorders_that_never_wrote_the_length_are_trusted(
    tmp_path: Path, write_wav: Callable[..., Path], noise: Callable[..., Any]
) -> None:
    """A WAV with a placeholder for its length is accepted to its end; one with a length must have it."""
    data = bytearray(write_wav(tmp_path / "source.wav", noise(800), 8000).read_bytes())
    assert _problem(tmp_path, bytes(data[:-2]), "wav")
    for placeholder in (0, 0xFFFFFFFF):
        data[40:44] = placeholder.to_bytes(4, "little")
        assert _problem(tmp_path, bytes(data[:-2]), "wav") is None


def test_other_formats_are_left_to_the_decoder(tmp_path: Path) -> None:
    """A format without its own check has no finding."""
    assert _problem(tmp_path, b"fLaC", "flac") is None


@pytest.mark.parametrize("lost_bytes", [1, 2, 4, 7])
def test_sound_is_complete_if_only_metadata_is_cut(
    lost_bytes: int, tmp_path: Path, write_wav: Callable[..., Path], noise: Callable[..., Any]
) -> None:
    """Metadata after the audio that is cut, or states too much, is ignored."""
    data = write_wav(tmp_path / "source.wav", noise(800), 8000).read_bytes()
    metadata = b"LIST\x0c\0\0\0INFOISFT\0\0\0\0"
    (tmp_path / "a.wav").write_bytes(data + metadata[:-lost_bytes])
    assert missing_end(tmp_path / "a.wav", "wav") is None
    copy = decodable_copy(tmp_path / "a.wav", "wav", tmp_path, max_duration_seconds=9)
    assert copy.read_bytes() == data


def test_copy_is_never_larger_than_a_wav_can_be(
    tmp_path: Path, write_wav: Callable[..., Path], noise: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Audio that must be copied is refused if 32 bits cannot hold its size."""
    source = write_wav(tmp_path / "source.wav", noise(800), 8000)
    data = source.read_bytes()
    source.write_bytes(data[:40] + bytes(4) + data[44:])
    for limit, problem in ((1600, None), (1599, "it holds 1600 bytes of audio, more than a WAV can")):
        monkeypatch.setattr("s2v_tasks.media.wav_scan._MAX_COPY_BYTES", limit)
        assert missing_end(source, "wav") == problem
    source.write_bytes(data)
    assert missing_end(source, "wav") is None


SUFFIXES = {"mp3": ".mp3", "ogg": ".ogg", "mov": ".m4a", "matroska": ".mka", "wav": ".wav"}


@pytest.mark.parametrize("other", ["wav", "ogg", "mov"])
@pytest.mark.parametrize("format_name", ["mp3", "ogg", "mov", "matroska"])
def test_file_of_another_kind_is_not_passed_over(
    format_name: str,
    other: str,
    tmp_path: Path,
    write_wav: Callable[..., Path],
    noise: Callable[..., Any],
    convert: Callable[..., Path],
) -> None:
    """Concatenated files of several formats are refused with the position of the second."""
    wav = write_wav(tmp_path / "source.wav", noise(4800), 48000)
    one, two = (convert(wav, tmp_path / f"a{SUFFIXES[name]}").read_bytes() for name in (format_name, other))
    assert _problem(tmp_path, one, format_name) is None
    found = _problem(tmp_path, one + two, format_name)
    expected = None if format_name == other else f"a file of another kind ({other}) begins at byte {len(one)}"
    assert found == expected


@pytest.mark.parametrize(
    ("rate", "channels", "accepted"),
    [(4_000, 1, True), (3_999, 1, False), (192_000, 1, True), (192_001, 1, False), (8_000, 8, True), (8_000, 9, False)],
)
def test_rates_and_channels_of_recordings_are_accepted(
    rate: int, channels: int, accepted: bool, tmp_path: Path
) -> None:
    """4 to 192 kHz and up to eight channels are accepted; a refusal names these limits."""
    (tmp_path / "a.wav").write_bytes(wav(speech(rate // 4 * channels), rate=rate, channels=channels))
    if accepted:
        info = normalise_speech(tmp_path / "a.wav", tmp_path / "16k.wav", max_duration_seconds=9)
        assert (info.sample_rate, info.channels, info.num_samples) == (rate, channels, rate // 4)
    else:
        with pytest.raises(PermanentError, match="expected at most 8 channels of 4000 to 192000 Hz"):
            normalise_speech(tmp_path / "a.wav", tmp_path / "16k.wav", max_duration_seconds=9)


def test_tags_are_measured_before_any_file_is_opened(
    tmp_path: Path, write_wav: Callable[..., Path], noise: Callable[..., Any], convert: Callable[..., Path]
) -> None:
    """AAC after tags is no MP3, and the size of its tags is limited, because ffmpeg reads all of them first."""
    sound = convert(write_wav(tmp_path / "a.wav", noise(8000), 8000), tmp_path / "a.aac").read_bytes()
    for tag_bytes, refused in ((1024, False), (MAX_TAG_BYTES - 10, False), (MAX_TAG_BYTES - 9, True)):  # and the header
        size = bytes(tag_bytes >> shift & 127 for shift in (21, 14, 7, 0))
        (tmp_path / "tagged.aac").write_bytes(b"ID3\4\0\0" + size + bytes(tag_bytes) + sound)
        if refused:
            with pytest.raises(PermanentError, match=f"more than {MAX_TAG_BYTES} bytes of tags"):
                normalise_speech(tmp_path / "tagged.aac", tmp_path / "16k.wav", max_duration_seconds=9)
        else:
            normalise_speech(tmp_path / "tagged.aac", tmp_path / "16k.wav", max_duration_seconds=9)


def test_only_an_mp3_is_measured_by_its_bytes(tmp_path: Path) -> None:
    """A FLAC or AAC file behind tags may have more bytes per second than any MP3."""
    source = tmp_path / "tagged.flac"
    source.write_bytes(b"ID3\4" + bytes(6) + b"fLaC")
    os.truncate(source, MAX_TAG_BYTES + 100_000)
    for formats in ("mp3,aac,flac", "flac"):
        assert too_much(source, formats, 1) is None
    assert too_much(source, "mp3", 1) == "holds more than 1 s: shorten it or raise the limit (S2V_MAX_AUDIO_SECONDS)"


def _ogg_page(number: int, segments: bytes) -> bytes:
    """Return a page with the lacing values `segments`; the first page begins a stream."""
    begins = 2 if number == 0 else 0
    header = b"OggS\0" + bytes([begins]) + bytes(8) + b"abcd" + number.to_bytes(4, "little") + bytes(4)
    return header + bytes([len(segments)]) + segments + bytes(sum(segments))


def test_an_ogg_file_ends_with_a_whole_page(tmp_path: Path) -> None:
    """A last page without content is whole; a page of which the last bytes are missing is not."""
    first = _ogg_page(0, b"\x09\x05")
    for last in (_ogg_page(1, b""), _ogg_page(1, b"\x03"), _ogg_page(1, b"\x00\x01")):
        for size in range(4, len(last) + 1):
            (tmp_path / "a.ogg").write_bytes(first + last[:size])
            expected = None if size == len(last) else "its last Ogg page is not whole"
            assert missing_end(tmp_path / "a.ogg", "ogg") == expected, (len(last), size)


def test_a_file_that_begins_with_another_kind_is_named(tmp_path: Path) -> None:
    """The mark of another format counts at each place, also at the first byte."""
    (tmp_path / "a.ogg").write_bytes(b"RIFF\0\0\0\0WAVEfmt " + _ogg_page(1, b"\x03"))
    assert missing_end(tmp_path / "a.ogg", "ogg") == "a file of another kind (wav) begins at byte 0"


def test_a_cut_page_before_another_ogg_file_is_named(tmp_path: Path) -> None:
    """The position tells which of several joined files has lost its end."""
    first, last = _ogg_page(0, b"\x09\x05"), _ogg_page(1, b"\x03")
    for lost_bytes, problem in ((0, None), (1, f"its Ogg page at byte {len(first)} is not whole")):
        (tmp_path / "a.ogg").write_bytes(first + last[: len(last) - lost_bytes] + first + last)
        assert missing_end(tmp_path / "a.ogg", "ogg") == problem


def test_the_tracks_of_a_file_without_sound_are_named(
    tmp_path: Path, moving: Callable[..., Frames], refusal: Callable[[Path], str]
) -> None:
    """Video, subtitles and an attached file are no speech; each kind is named once."""
    video, text, both = tmp_path / "a.mp4", tmp_path / "a.srt", tmp_path / "a.mkv"
    encode_clip(moving(4), video)
    text.write_text("1\n00:00:00,000 --> 00:00:01,000\nHello.\n", encoding="utf-8")
    command = [tool_path("ffmpeg"), "-loglevel", "error", "-i", str(video), "-i", str(text), "-map", "0", "-map", "1"]
    command += ["-attach", str(text), "-metadata:s:t", "mimetype=text/plain", "-c", "copy", str(both)]
    subprocess.run(command, check=True)
    assert "has no audio, only attachment, subtitle, video: upload a" in refusal(both)


@pytest.mark.parametrize(
    ("formats", "beginnings"),
    [
        ("wav", [b"RIFF\0\0\0\0WAVE", b"RF64\xff\xff\xff\xffWAVE", b"BW64\n\n\n\nWAVE"]),
        ("w64", [b"riff\x2e\x91\xcf\x11"]),
        ("flac", [b"fLaC"]),
        ("ogg", [b"OggS"]),
        ("mov", [b"\0\0\0\n" + box for box in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")]),
        ("matroska", [b"\x1a\x45\xdf\xa3"]),
        ("aiff", [b"FORM\0\0\0\0AIFF", b"FORM\0\0\0\0AIFC"]),
        ("caf", [b"caff"]),
        ("amr", [b"#!AMR"]),
        ("mp3,aac,flac", [b"ID3", b"APETAGEX", b"\xff\xe2", b"\xff\xff", bytes(65534) + b"\xff\xfb"]),
        (None, [b"", b"RIFF\0\0\0\0AVI ", b"FORM\0\0\0\08SVX", b"\xff\xe1", b" OggS", bytes(65535) + b"\xff\xfb"]),
    ],
)
def test_audio_is_recognised_by_its_first_bytes(formats: str | None, beginnings: list[bytes], tmp_path: Path) -> None:
    """The first bytes select the demuxers that may open the file, whatever its name is."""
    for beginning in beginnings:
        (tmp_path / "a.txt").write_bytes(beginning + b" more")
        assert audio_formats(tmp_path / "a.txt") == formats, beginning[-8:]
