"""Check that concatenated files are decoded to their end."""

import struct
from collections.abc import Callable
from fractions import Fraction
from math import ceil
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from s2v_tasks.errors import PermanentError
from s2v_tasks.media.audio_files import _part, audio_formats, concatenate, container_format, decodable_copy
from s2v_tasks.media.encode import Frames, encode_clip
from s2v_tasks.media.probe import Gap, Timeline, read_timeline
from s2v_tasks.media.speech import load_waveform, normalise_speech

Noise = Callable[..., npt.NDArray[np.float64]]
WriteWav = Callable[..., Path]
Convert = Callable[..., Path]
Refusal = Callable[..., str]
Parts = Callable[..., list[bytes]]

# Suffix of the file, options of the encoder, samples at 16 kHz by which a part may be longer than alone.
KINDS = {
    "opus": (".opus", {"acodec": "libopus"}, 0),
    "vorbis": (".ogg", {"acodec": "libvorbis"}, 64),
    "flac": (".flac", {"acodec": "flac"}, 0),
    "flac in ogg": (".oga", {"acodec": "flac"}, 0),
    "webm": (".webm", {"acodec": "libopus"}, 0),
    "matroska": (".mka", {"acodec": "flac"}, 0),
    "m4a": (".m4a", {"acodec": "aac"}, 350),
    "m4a for streaming": (".m4a", {"acodec": "aac", "movflags": "+faststart"}, 350),
    "wav": (".wav", {"acodec": "pcm_s24le"}, 0),
    "wav alaw": (".wav", {"acodec": "pcm_alaw"}, 0),
    "rf64": (".wav", {"rf64": "always"}, 0),
    "wave64": (".w64", {}, 0),
    "aiff": (".aiff", {}, 0),
    "caf": (".caf", {"acodec": "pcm_s16le"}, 0),
}

LIVE = {"acodec": "libopus", "live": 1}  # as a browser records: without length and sizes


@pytest.fixture
def parts(tmp_path: Path, noise: Noise, write_wav: WriteWav, convert: Convert) -> Parts:
    """Makes files of one kind: 1 s of 48 kHz mono, then half a second each with other rates and channels."""

    def make(kind: str, *others: tuple[int, int]) -> list[bytes]:
        suffix, options, _ = KINDS[kind]
        made = []
        for number, (rate, channels) in enumerate([(48000, 1), *others]):
            wav = write_wav(tmp_path / f"{number}-source.wav", noise(rate // (2 if number else 1), channels), rate)
            made.append(convert(wav, tmp_path / f"{number}{suffix}", **options).read_bytes())
        return made

    return make


@pytest.mark.parametrize("kind", KINDS)
def test_concatenated_files_are_decoded_completely(kind: str, tmp_path: Path, parts: Parts) -> None:
    """Three files joined by `cat` have the samples of all of them, also with different rates."""
    source, longer = tmp_path / f"speech{KINDS[kind][0]}", KINDS[kind][2]
    waveforms, seconds = [], Fraction(0)
    files = parts(kind, (48000, 1), (44100, 2))
    for file in files:
        source.write_bytes(file)
        seconds += normalise_speech(source, tmp_path / "16k.wav", max_duration_seconds=9).duration_seconds
        waveforms.append(load_waveform(tmp_path / "16k.wav"))
    source.write_bytes(b"".join(files))
    info = normalise_speech(source, tmp_path / "16k.wav", max_duration_seconds=9)
    assert 0 <= info.num_samples - ceil(seconds * 48000) <= 9 * longer
    whole, start = load_waveform(tmp_path / "16k.wav"), 0
    for alone in waveforms:
        around = whole[start + 1000 - longer : start + 7000 + longer]
        at = int(np.argmax(np.correlate(around, alone[1000:7000])))
        if longer == 0:
            np.testing.assert_allclose(around[:6000], alone[1000:7000], atol=0.03)
        # Where a part may begin between two samples, it is only much alike.
        assert np.corrcoef(around[at : at + 6000], alone[1000:7000])[0, 1] > 0.6
        start += len(alone) + at - longer


@pytest.mark.parametrize("kind", ["opus", "flac", "webm", "wav", "caf"])
@pytest.mark.parametrize("which", [0, 1])
def test_cut_part_is_found(kind: str, which: int, tmp_path: Path, parts: Parts, refusal: Refusal) -> None:
    """A part without its second half is refused and not read as a short part; the message may name its number."""
    files = parts(kind, (48000, 1))
    files[which] = files[which][: len(files[which]) // 2]
    source = tmp_path / f"speech{KINDS[kind][0]}"
    source.write_bytes(b"".join(files))
    reason = refusal(source)
    assert "damaged" in reason
    if kind == "flac":
        assert f"(file {which + 1} of 2 in it)" in reason


@pytest.mark.parametrize("kind", ["opus", "webm", "recorded webm", "matroska", "m4a"])
def test_gaps_of_each_part_are_silence(
    kind: str, tmp_path: Path, noise: Noise, write_wav: WriteWav, convert: Convert
) -> None:
    """Gaps in the time stamps of two joined recordings of 48 and 44.1 kHz become silence."""
    suffix, options = (".webm", LIVE) if kind == "recorded webm" else KINDS[kind][:2]
    dropped = {"bsf:a": "noise=drop='between(pts*tb,0.4,0.7)'"} | ({"page_duration": 50_000} if kind == "opus" else {})
    source, waveforms, files = tmp_path / f"speech{suffix}", [], b""
    for rate in (48000, 44100):
        wav = write_wav(tmp_path / "source.wav", noise(rate), rate)
        file = convert(wav, tmp_path / f"part{suffix}", **options, **dropped).read_bytes()
        source.write_bytes(file)
        assert normalise_speech(source, tmp_path / "16k.wav", max_duration_seconds=9).gap_seconds > 0.25
        waveforms.append(load_waveform(tmp_path / "16k.wav"))
        files += file
    source.write_bytes(files)
    normalise_speech(source, tmp_path / "16k.wav", max_duration_seconds=9)
    whole, alone = load_waveform(tmp_path / "16k.wav"), np.concatenate(waveforms)
    assert len(whole) == pytest.approx(len(alone), abs=1000)
    for half in (slice(0, len(waveforms[0])), slice(len(waveforms[0]), None)):
        silent, expected = _silent(whole[half]), _silent(alone[half])
        assert (len(silent), silent[0]) == pytest.approx((len(expected), expected[0]), abs=1000)
        assert len(silent) > 2000


def test_gaps_of_a_part_are_counted_at_the_joined_rate(
    tmp_path: Path, noise: Noise, write_wav: WriteWav, convert: Convert
) -> None:
    """At twice the rate a gap begins twice as late and is twice as long; the samples before 0 are counted."""
    wav, lost = write_wav(tmp_path / "a.wav", noise(44100), 44100), "noise=drop='between(pts*tb,0.4,0.7)'"
    source = convert(wav, tmp_path / "a.mka", acodec="aac", **{"bsf:a": lost})
    part = _part(source, "a.mka")
    found = read_timeline(source, 0, part.stream, part.format_name, max_seconds=9)
    ((position, num_samples),) = [(gap.position, gap.num_samples) for gap in found.gaps]
    assert found.num_skipped > 1000
    expected = Gap(2 * (position + found.num_skipped), 2 * num_samples)
    assert part._gaps(2 * 44100, 9) == Timeline(gaps=(expected,))


def _silent(waveform: npt.NDArray[np.float32]) -> npt.NDArray[np.intp]:
    """Return the samples in the middle of each sixteenth of a second of silence."""
    return np.flatnonzero(np.convolve(np.abs(waveform) > 1e-3, np.ones(1000), "valid") == 0)


@pytest.mark.parametrize("which", [0, 1])
def test_hole_in_a_part_is_no_silence(
    which: int, tmp_path: Path, noise: Noise, write_wav: WriteWav, convert: Convert, refusal: Refusal
) -> None:
    """Zeros in place of packets are damage, in each of the files."""
    wav = write_wav(tmp_path / "source.wav", noise(48000), 48000)
    whole = convert(wav, tmp_path / "part.webm", acodec="libopus").read_bytes()
    middle = len(whole) // 2
    files = [whole, whole]
    files[which] = whole[:middle] + bytes(900) + whole[middle + 900 :]
    (tmp_path / "speech.webm").write_bytes(b"".join(files))
    assert "there is no element" in refusal(tmp_path / "speech.webm")


@pytest.mark.parametrize("kind", ["webm", "matroska"])
def test_a_joined_file_that_is_shorter_than_its_header_is_refused(
    kind: str, tmp_path: Path, parts: Parts, refusal: Refusal
) -> None:
    """The length in the header of each Matroska file is compared with its samples; a tenth of a second may lack."""
    one, two = parts(kind, (48000, 1))
    for milliseconds, refused in ((2000.0, True), (600.0, False)):
        source = tmp_path / f"a{KINDS[kind][0]}"
        source.write_bytes(one + _stating(two, milliseconds))
        if refused:
            expected = (
                f"The speech {source.name} (file 2 of 2 in it) is damaged or cut off: it states 2.00 s and only 0.5"
            )
            assert refusal(source).startswith(expected)
        else:
            assert normalise_speech(source, tmp_path / "16k.wav", max_duration_seconds=9).num_samples >= 1.5 * 48000


def test_a_recording_is_filled_with_silence_from_a_tenth_of_a_second_on(tmp_path: Path, parts: Parts) -> None:
    """Half a second that states 400 or 600 ms is left as it is; one that states 601 ms is as long as it states."""
    _, half = parts("matroska", (48000, 1))
    for milliseconds, num_samples in ((400.0, 24000), (600.0, 24000), (601.0, 28848)):
        (tmp_path / "a.mka").write_bytes(_stating(half, milliseconds))
        info = normalise_speech(tmp_path / "a.mka", tmp_path / "16k.wav", max_duration_seconds=9)
        assert info.num_samples == num_samples


def test_short_recordings_without_a_length_are_joined(
    tmp_path: Path, noise: Noise, write_wav: WriteWav, convert: Convert
) -> None:
    """A part that states no length may have any: two times half a second are a second."""
    wav = write_wav(tmp_path / "a.wav", noise(24_000), 48_000)
    (tmp_path / "b.webm").write_bytes(convert(wav, tmp_path / "a.webm", **LIVE).read_bytes() * 2)
    info = normalise_speech(tmp_path / "b.webm", tmp_path / "16k.wav", max_duration_seconds=9)
    assert info.duration_seconds == pytest.approx(1, abs=0.05)


def _stating(matroska: bytes, milliseconds: float) -> bytes:
    """Return the file with another length in its header."""
    at = matroska.index(b"\x44\x89\x88") + 3
    return matroska[:at] + struct.pack(">d", milliseconds) + matroska[at + 8 :]


def test_amr_files_are_joined(tmp_path: Path, refusal: Refusal) -> None:
    """The header of the second AMR file is not decoded as a frame."""
    one = b"#!AMR\n" + (b"\x3c" + bytes(31)) * 50
    (tmp_path / "a.amr").write_bytes(one + one + one)
    info = normalise_speech(tmp_path / "a.amr", tmp_path / "all.wav", max_duration_seconds=9)
    assert info.num_samples == 3 * 8000


def test_streams_that_are_played_together_are_one_file(tmp_path: Path, parts: Parts) -> None:
    """An Ogg file with two multiplexed streams does not count as concatenated."""
    one, two = parts("opus", (48000, 1))
    first, rest = one[: one.index(b"OggS", 1)], one[one.index(b"OggS", 1) :]
    other_first, other_rest = two[: two.index(b"OggS", 1)], two[two.index(b"OggS", 1) :]
    (tmp_path / "a.ogg").write_bytes(first + other_first + rest + other_rest)
    assert _copy(tmp_path / "a.ogg", tmp_path) == tmp_path / "a.ogg"


@pytest.mark.parametrize("kind", KINDS)
def test_single_file_is_not_copied(kind: str, tmp_path: Path, parts: Parts) -> None:
    """A valid single file is decoded in place."""
    source = tmp_path / f"speech{KINDS[kind][0]}"
    source.write_bytes(parts(kind)[0])
    assert _copy(source, tmp_path) == source


def _copy(source: Path, folder: Path) -> Path:
    format_name = container_format(source, audio_formats(source) or "", doing="reading")
    return decodable_copy(source, format_name, folder, max_duration_seconds=9)


def test_long_joined_files_are_decoded_only_to_the_bound(tmp_path: Path, parts: Parts, refusal: Refusal) -> None:
    """At most one second beyond the limit is written, and the speech is refused."""
    one, two = parts("opus", (48000, 1))
    (tmp_path / "a.opus").write_bytes(one + one + one + two)
    assert "at most 0.75 s" in refusal(tmp_path / "a.opus", max_duration_seconds=0.75)
    files = [tmp_path / "0.opus", tmp_path / "1.opus", tmp_path / "0.opus"]
    concatenate(files, tmp_path / "joined.wav", max_duration_seconds=0.25)
    assert (
        normalise_speech(tmp_path / "joined.wav", tmp_path / "16k.wav", max_duration_seconds=9).duration_seconds == 1.25
    )


@pytest.mark.parametrize("kind", ["flac", "wav"])
def test_number_of_joined_files_is_bounded(kind: str, tmp_path: Path, parts: Parts, refusal: Refusal) -> None:
    """A hundred joined files are read; more are refused before one is decoded."""
    source = tmp_path / f"a{KINDS[kind][0]}"
    (one,) = parts(kind)
    source.write_bytes(one * 101)
    assert "joined from more than 100 files" in refusal(source)
    source.write_bytes((one[:-900] + bytes(900)) * 100 if kind == "flac" else one * 100)
    assert "joined from more than" not in refusal(source, max_duration_seconds=0.1)


def test_tags_and_padding_around_flac_are_left_out(tmp_path: Path, parts: Parts) -> None:
    """Tags before, between and after FLAC files, and zeros after them, are no damage."""
    source, (one,) = tmp_path / "a.flac", parts("flac")
    before = b"ID3\3\0\0\0\0\1\0" + bytes(128)
    for behind in (b"TAG".ljust(128, b"x"), bytes(64), bytes(5000), before, b"\0", b"TAG".ljust(128, b"x") + bytes(90)):
        source.write_bytes(before + one + behind + before + one + behind)
        assert normalise_speech(source, tmp_path / "16k.wav", max_duration_seconds=9).num_samples == 96_000
        source.write_bytes(before + one + behind)
        assert normalise_speech(source, tmp_path / "16k.wav", max_duration_seconds=9).num_samples == 48_000
    source.write_bytes(one[:-2000] + bytes(2000))
    with pytest.raises(PermanentError, match="damaged"):
        normalise_speech(source, tmp_path / "16k.wav", max_duration_seconds=9)


def test_a_joined_file_without_audio_is_named(
    tmp_path: Path, moving: Callable[..., Frames], parts: Parts, convert: Convert, refusal: Refusal
) -> None:
    """A joined video without sound, or a file that states no rate or no channels, is refused with its number."""
    encode_clip(moving(4), tmp_path / "silent.mp4")
    silent = convert(tmp_path / "silent.mp4", tmp_path / "silent.mkv", vcodec="copy").read_bytes()
    (sound,), (m4a,) = parts("matroska"), parts("m4a")
    samples = convert(tmp_path / "0-source.wav", tmp_path / "pcm.mka", acodec="pcm_s16le").read_bytes()
    unknown = samples.replace(b"A_PCM", b"A_NEW")  # a codec without a decoder: ffprobe opens none of these numbers
    no_channels, no_rate = (
        unknown.replace(b"\x9f\x81\x01", b"\x9f\x81\x00"),
        unknown.replace(struct.pack(">d", 48000), bytes(8)),
    )
    assert len({samples, unknown, no_channels, no_rate}) == 4
    files = [("a.mka", sound + silent), ("b.mka", sound + no_channels), ("c.mka", sound + no_rate)]
    for name, data in [*files, ("a.m4a", m4a + m4a.replace(b"stsd", b"none"))]:
        (tmp_path / name).write_bytes(data)
        assert f"{name} (file 2 of 2 in it) has no audio stream: export it as one" in refusal(tmp_path / name)


def test_unlike_channels_are_refused(tmp_path: Path, parts: Parts, refusal: Refusal) -> None:
    """Joined files with different numbers of channels are refused, unless the difference is mono."""
    _, stereo, three = parts("wav", (48000, 2), (48000, 3))
    (tmp_path / "a.wav").write_bytes(stereo + three)
    assert "joined from files of 2, 3 channels" in refusal(tmp_path / "a.wav")
