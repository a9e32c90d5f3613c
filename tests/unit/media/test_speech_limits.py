"""Check the limits at which another track is used, and at which a speech is too long."""

import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import ffmpeg as arguments
import numpy as np
import numpy.typing as npt
import pytest

from s2v_tasks.errors import PermanentError
from s2v_tasks.media import ffmpeg
from s2v_tasks.media.probe import probe
from s2v_tasks.media.speech import normalise_speech

RATE = 8000
Samples = npt.NDArray[np.float64]
Chosen = Callable[..., int]


def _swinging(decibels: float) -> Samples:
    """Return a second of tone `[n, 1]` whose level changes by this much from each tenth of a second to the next."""
    windows = np.arange(RATE) // (RATE // 10)
    level = 0.5 * 10 ** (-decibels / 20 * (windows % 2))
    return np.asarray(level * np.sin(np.arange(RATE) * 0.8 * np.pi), np.float64)[:, None]


@pytest.fixture
def chosen(tmp_path: Path, write_wav: Callable[..., Path]) -> Chosen:
    """Returns the number of the track, from 1, that is used of a file with these tracks; the first is the default."""

    def run(*tracks: Samples, rates: Sequence[int] = (RATE,) * 9) -> int:
        files = [write_wav(tmp_path / f"{k}.wav", samples, rates[k]) for k, samples in enumerate(tracks)]
        streams = [ffmpeg.uploaded_input(file, "wav")["a:0"] for file in files]
        output = arguments.output(*streams, ffmpeg.file_url(tmp_path / "a.mkv"), acodec="flac")
        ffmpeg.run(output, doing="making a.mkv", error=PermanentError)
        return normalise_speech(tmp_path / "a.mkv", tmp_path / "16k.wav", max_duration_seconds=9).track

    return run


@pytest.mark.parametrize(
    ("first_db", "second_db", "track"),
    [(3.1, 9.0, 1), (2.9, 9.0, 2), (0.0, 0.55, 2), (0.0, 0.45, 1), (9.0, 3.0, 1)],
)
def test_a_track_is_left_for_one_that_varies_three_times_as_much(
    first_db: float, second_db: float, track: int, chosen: Chosen
) -> None:
    """The first track is used unless its level varies by less than a third of another's, which is at least 0.5 dB."""
    assert chosen(_swinging(first_db), _swinging(second_db)) == track


@pytest.mark.parametrize(("rate", "track"), [(4000, 2), (3999, 1)])
def test_a_track_that_is_no_recording_is_not_searched(rate: int, track: int, chosen: Chosen) -> None:
    """Speech in the second track is used from 4 kHz on."""
    assert chosen(_swinging(0) * 0, _swinging(9), rates=(RATE, rate)) == track


def test_only_eight_tracks_are_searched(chosen: Chosen) -> None:
    """Speech in the eighth track is found, in the ninth it is not."""
    silent = _swinging(0) * 0
    assert chosen(*[silent] * 7, _swinging(9), silent) == 8
    assert chosen(*[silent] * 8, _swinging(9)) == 1


def test_sound_is_decoded_as_often_as_needed(
    tmp_path: Path, write_wav: Callable[..., Path], chosen: Chosen, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mono is decoded once. Several channels are surveyed first, and so is each of several tracks."""
    runs = []

    def counted(*arguments: Any, **options: Any) -> Iterator[bytes]:
        runs.append(arguments)
        return ffmpeg.read_chunks(*arguments, **options)

    monkeypatch.setattr("s2v_tasks.media.speech_source.read_chunks", counted)
    for channels, num_runs in ((1, 1), (2, 2)):
        runs.clear()
        source = write_wav(tmp_path / "a.wav", _swinging(6).repeat(channels, axis=1), RATE)
        normalise_speech(source, tmp_path / "16k.wav", max_duration_seconds=9)
        assert len(runs) == num_runs
    runs.clear()
    chosen(_swinging(6), _swinging(5))
    assert len(runs) == 3


@pytest.mark.parametrize("options", [{"acodec": "pcm_s16le"}, {"acodec": "flac"}])
def test_a_speech_may_be_as_long_as_the_limit(
    options: dict[str, Any], tmp_path: Path, write_wav: Callable[..., Path], convert: Callable[..., Path]
) -> None:
    """A second is accepted for a limit of one second, and refused for one that is a sample shorter."""
    suffix = ".wav" if options["acodec"] == "pcm_s16le" else ".flac"
    source = convert(write_wav(tmp_path / "source.wav", _swinging(6), RATE), tmp_path / f"a{suffix}", **options)
    limit = 1 - 1 / RATE
    assert normalise_speech(source, tmp_path / "16k.wav", max_duration_seconds=1).num_samples == RATE
    with pytest.raises(PermanentError, match=rf"lasts 1\.0 s, at most {limit:g} s are allowed"):
        normalise_speech(source, tmp_path / "16k.wav", max_duration_seconds=limit)


@pytest.mark.parametrize(
    ("name", "options"),
    [("a.aac", {"acodec": "aac"}), ("a.mp3", {"acodec": "libmp3lame", "q:a": 4, "write_xing": 0})],
)
@pytest.mark.parametrize("is_silent_first", [True, False])
def test_an_estimated_length_is_ignored(
    is_silent_first: bool,
    name: str,
    options: dict[str, Any],
    tmp_path: Path,
    noise: Callable[..., Samples],
    write_wav: Callable[..., Path],
    convert: Callable[..., Path],
) -> None:
    """Speech of a varying bit rate, from which ffmpeg estimates a wrong length, is as long as its frames."""
    samples = noise(8 * 16000)
    samples[slice(0, 6 * 16000) if is_silent_first else slice(2 * 16000, None)] = 0
    source = convert(write_wav(tmp_path / "source.wav", samples, 16000), tmp_path / name, **options)
    estimate = probe(source, doing="reading", error=PermanentError, formats="aac,mp3").container.duration
    assert estimate is not None
    assert abs(estimate - 8) > 4
    info = normalise_speech(source, tmp_path / "16k.wav", max_duration_seconds=9)
    assert 8 <= info.duration_seconds < 8.2


def test_padding_that_is_a_chunk_of_its_own_is_left_out(
    tmp_path: Path,
    noise: Callable[..., Samples],
    write_wav: Callable[..., Path],
    convert: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """AAC is padded to whole frames; no sample of the padding is kept where a decoded chunk begins with it."""
    monkeypatch.setattr("s2v_tasks.media.speech_source._CHUNK_SAMPLES", 4410)
    source = convert(write_wav(tmp_path / "a.wav", noise(44100), 44100), tmp_path / "a.m4a", acodec="aac")
    assert normalise_speech(source, tmp_path / "16k.wav", max_duration_seconds=9).num_samples == 44100


@pytest.mark.parametrize("num_small", [0, 50, 150, 200])
def test_frames_of_amr_are_counted(num_small: int, tmp_path: Path) -> None:
    """AMR frames of 4.75 and of 12.2 kbit/s last equally long, alone and in a joined file."""
    data = b"#!AMR\n" + (b"\x04" + bytes(12)) * num_small + (b"\x3c" + bytes(31)) * (200 - num_small)
    for num_files in (1, 2):
        (tmp_path / "a.amr").write_bytes(data * num_files)
        info = normalise_speech(tmp_path / "a.amr", tmp_path / "16k.wav", max_duration_seconds=9)
        assert info.num_samples == num_files * 200 * 160


@pytest.mark.parametrize("name", ["a.wav", "a.aiff", "a.caf"])
def test_a_file_without_samples_is_refused(
    name: str,
    tmp_path: Path,
    write_wav: Callable[..., Path],
    convert: Callable[..., Path],
    refusal: Callable[..., str],
) -> None:
    """A valid header without audio is named as that."""
    empty = write_wav(tmp_path / "source.wav", np.empty((0, 1)), RATE)
    assert "holds no samples" in refusal(
        convert(empty, tmp_path / name, acodec="pcm_s16be" if name == "a.aiff" else "pcm_s16le")
    )


@pytest.mark.parametrize(
    ("stated", "changed", "problem"),
    [
        (b"\x9f\x81\x01", b"\x9f\x81\x00", "states 0 channels of 8000 Hz"),
        (struct.pack(">d", RATE), bytes(8), "states 1 channels of 0 Hz"),
    ],
    ids=["channels", "rate"],
)
def test_a_header_without_channels_or_rate_is_refused(
    stated: bytes,
    changed: bytes,
    problem: str,
    tmp_path: Path,
    write_wav: Callable[..., Path],
    convert: Callable[..., Path],
    refusal: Callable[..., str],
) -> None:
    """The message has both numbers of the header."""
    source = convert(write_wav(tmp_path / "a.wav", _swinging(6), RATE), tmp_path / "a.mka", acodec="pcm_s16le")
    # Of a codec without a decoder, because ffprobe cannot open the decoder of PCM with these numbers.
    source.write_bytes(source.read_bytes().replace(b"A_PCM", b"A_NEW").replace(stated, changed))
    assert problem in refusal(source)


@pytest.mark.parametrize("beginning", [b"fLaC", b"OggS"])
def test_a_file_of_a_beginning_alone_is_not_readable(
    beginning: bytes, tmp_path: Path, refusal: Callable[..., str]
) -> None:
    """A file that is audio by its first bytes only is refused with the formats that are read."""
    (tmp_path / "a.flac").write_bytes(beginning + bytes(100))
    expected = "The speech a.flac is not a readable audio file (expected WAV, MP3, FLAC, Ogg/Opus or M4A): reading it"
    assert refusal(tmp_path / "a.flac").startswith(expected)
