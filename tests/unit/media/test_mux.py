"""Check the muxing of speech and picture."""

from collections.abc import Callable, Iterator
from fractions import Fraction
from math import ceil
from pathlib import Path
from typing import Any

import ffmpeg as arguments
import numpy as np
import numpy.typing as npt
import pytest

from s2v_tasks.errors import PermanentError, TransientError
from s2v_tasks.media import ffmpeg
from s2v_tasks.media.assembly import mux
from s2v_tasks.media.encode import Frames, encode_clip, mp4_options
from s2v_tasks.media.frames import read_frames
from s2v_tasks.media.probe import Probe, Stream, probe
from s2v_tasks.media.speech import load_waveform, normalise_speech
from s2v_tasks.media.speech_source import SpeechSource

CLICKS_SECONDS = (0.05, 0.7, 1.9)


@pytest.fixture
def silent(tmp_path: Path, moving: Callable[..., Frames]) -> Path:
    """A video of 32 frames (2 s) without audio."""
    encode_clip(moving(32), tmp_path / "silent.mp4")
    return tmp_path / "silent.mp4"


def _clicks(sample_rate: int, channels: int = 1, seconds: float = 2.0) -> npt.NDArray[np.float64]:
    samples = np.zeros((int(seconds * sample_rate), channels))
    width = sample_rate // 2000  # half a millisecond
    for at in CLICKS_SECONDS:
        start = round(at * sample_rate)
        samples[start : start + width] = 0.9
    return samples


def _decoded(path: Path, sample_rate: int = 48000) -> npt.NDArray[np.float32]:
    command = ffmpeg.own_input(path).audio.output("pipe:1", format="f32le", ac=1, ar=sample_rate)
    chunks = ffmpeg.read_chunks(command, 1 << 16, doing="decoding", error=PermanentError)
    return np.frombuffer(b"".join(chunks), np.float32)


def _click_times(path: Path, sample_rate: int = 48000) -> list[float]:
    """Return the time in seconds of the middle of each click."""
    energy = np.abs(_decoded(path, sample_rate))
    half = sample_rate // 50
    times = []
    for at in CLICKS_SECONDS:
        middle = round((at + 0.00025) * sample_rate)
        window = energy[max(0, middle - half) : middle + half] ** 2
        times.append(
            (max(0, middle - half) + float((window * np.arange(window.size)).sum() / window.sum())) / sample_rate
        )
    return times


def _audio(path: Path) -> Stream:
    stream = probe(path, doing="reading", error=PermanentError).audio
    assert stream is not None
    return stream


@pytest.mark.parametrize(
    ("sample_rate", "channels", "name", "options"),
    [
        (44100, 2, "a.wav", None),
        (8000, 1, "a.wav", None),
        (48000, 1, "a.mp3", {"acodec": "libmp3lame", "audio_bitrate": "192k"}),
        (44100, 1, "a.m4a", {"acodec": "aac", "audio_bitrate": "192k"}),
        (48000, 1, "a.ogg", {"acodec": "libopus", "audio_bitrate": "192k"}),
    ],
)
def test_sound_stays_in_sync(
    sample_rate: int,
    channels: int,
    name: str,
    options: dict[str, str] | None,
    silent: Path,
    tmp_path: Path,
    write_wav: Callable[..., Path],
    convert: Callable[..., Path],
) -> None:
    """Clicks of the speech are in the video at the same times within a millisecond, from first to last."""
    source = write_wav(tmp_path / "source.wav", _clicks(sample_rate, channels), sample_rate)
    source = convert(source, tmp_path / name, **options) if options else source
    mux(silent, source, tmp_path / "muxed.mp4", num_frames=32, fps=16)
    assert _click_times(tmp_path / "muxed.mp4") == pytest.approx([at + 0.00025 for at in CLICKS_SECONDS], abs=0.001)


def test_delay_of_the_encoder_is_compensated_in_the_file(
    silent: Path, tmp_path: Path, write_wav: Callable[..., Path]
) -> None:
    """The edit list makes players skip the 1024 priming samples of AAC."""
    mux(silent, write_wav(tmp_path / "a.wav", _clicks(48000), 48000), tmp_path / "muxed.mp4", num_frames=32, fps=16)
    data = (tmp_path / "muxed.mp4").read_bytes()
    audio_edit_list = data.rindex(b"elst")
    media_time = int.from_bytes(data[audio_edit_list + 16 : audio_edit_list + 20], "big")
    assert media_time == 1024


@pytest.mark.parametrize(("seconds", "num_frames"), [(1.7, 32), (2.0, 32), (2.6, 32), (0.1, 31)])
@pytest.mark.parametrize("sample_rate", [44100, 48000, 22050])
def test_sound_is_exactly_as_long_as_the_picture(
    seconds: float,
    num_frames: int,
    sample_rate: int,
    tmp_path: Path,
    moving: Callable[..., Frames],
    noise: Callable[..., Any],
    write_wav: Callable[..., Path],
) -> None:
    """Short speech is padded with silence and long speech cut, to the sample."""
    encode_clip(moving(num_frames, width=64), tmp_path / "silent.mp4")
    source = write_wav(tmp_path / "a.wav", noise(int(seconds * sample_rate)), sample_rate)
    mux(tmp_path / "silent.mp4", source, tmp_path / "muxed.mp4", num_frames=num_frames, fps=16)
    stream = _audio(tmp_path / "muxed.mp4")
    assert stream.duration is not None
    assert 0 <= stream.duration - Fraction(num_frames, 16) < Fraction(1, stream.sample_rate)
    sound = _decoded(tmp_path / "muxed.mp4", stream.sample_rate)
    speech_end = int(min(seconds, num_frames / 16) * stream.sample_rate)
    assert np.abs(sound[:speech_end]).max() > 0.3
    assert speech_end + 2048 > num_frames / 16 * stream.sample_rate or np.abs(sound[speech_end + 2048 :]).max() < 0.01


@pytest.mark.parametrize(
    ("given", "delivered"), [((44100, 2), (44100, 2)), ((8000, 1), (48000, 1)), ((96000, 6), (48000, 2))]
)
def test_rate_and_channels_are_playable(
    given: tuple[int, int],
    delivered: tuple[int, int],
    silent: Path,
    tmp_path: Path,
    noise: Callable[..., Any],
    write_wav: Callable[..., Path],
) -> None:
    """Rates of CD and film stay, other rates become 48 kHz, and more than two channels become stereo."""
    source = write_wav(tmp_path / "a.wav", noise(given[0], given[1]), given[0])
    mux(silent, source, tmp_path / "muxed.mp4", num_frames=32, fps=16)
    stream = _audio(tmp_path / "muxed.mp4")
    assert (stream.codec_name, stream.sample_rate, stream.channels) == ("aac", *delivered)


def test_picture_is_copied_and_bytes_are_reproducible(
    silent: Path, tmp_path: Path, noise: Callable[..., Any], write_wav: Callable[..., Path]
) -> None:
    """Muxing changes no pixel, and the same input gives the same file, which starts with its index."""
    source = write_wav(tmp_path / "a.wav", noise(32000), 16000)
    for name in ("a.mp4", "b.mp4"):
        mux(silent, source, tmp_path / name, num_frames=32, fps=16)
    data = (tmp_path / "a.mp4").read_bytes()
    assert data == (tmp_path / "b.mp4").read_bytes()
    assert b"Lavc" not in data
    assert data.index(b"moov") < data.index(b"mdat")
    before, after = (read_frames(path, start_frame=0, end_frame=99) for path in (silent, tmp_path / "a.mp4"))
    assert np.array_equal(before, after)


@pytest.mark.parametrize("kind", ["piped", "padded", "joined"])
def test_accepted_speech_is_muxed_in_sync(
    kind: str,
    tmp_path: Path,
    moving: Callable[..., Frames],
    write_wav: Callable[..., Path],
    convert: Callable[..., Path],
) -> None:
    """WAVs of unknown length and MP3s with junk are muxed without a shift to the samples of the model."""
    source = write_wav(tmp_path / "a.wav", _clicks(48000), 48000)
    data = bytearray(source.read_bytes())
    data[4:8] = data[40:44] = b"\xff\xff\xff\xff"
    if kind != "piped":
        source = convert(source, tmp_path / "a.mp3", acodec="libmp3lame", audio_bitrate="192k")
        data = bytearray(source.read_bytes())
        data += bytes(4096) if kind == "padded" else bytes(data)
    source.write_bytes(data)
    info = normalise_speech(source, tmp_path / "16k.wav", max_duration_seconds=9)
    num_frames = ceil(info.duration_seconds * 16)
    encode_clip(moving(num_frames), tmp_path / "silent.mp4")
    mux(tmp_path / "silent.mp4", source, tmp_path / "muxed.mp4", num_frames=num_frames, fps=16)
    assert _click_times(tmp_path / "muxed.mp4") == pytest.approx([at + 0.00025 for at in CLICKS_SECONDS], abs=0.001)
    waveform, played = load_waveform(tmp_path / "16k.wav"), _decoded(tmp_path / "muxed.mp4", 16000)
    loudest = int(np.abs(waveform[-8000:]).argmax()) + len(waveform) - 8000
    assert abs(int(np.abs(played[loudest - 500 : loudest + 500]).argmax()) - 500) <= 16
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == set()


def test_source_without_sound_is_refused(silent: Path, tmp_path: Path) -> None:
    """A speech file without audio is refused."""
    with pytest.raises(PermanentError, match="no audio"):
        mux(silent, silent, tmp_path / "muxed.mp4", num_frames=32, fps=16)


@pytest.mark.parametrize(
    ("late", "seconds", "problem"),
    [
        ((0.0, 0.0), 2.0, None),
        ((0.0, 0.05), 2.0, "picture from 0 s .* audio from 1/20 s"),
        ((0.125, 0.0), 2.0, "picture from 1/8 s .* audio from 0 s"),
        ((0.125, 0.125), 2.0, "picture from 1/8 s .* audio from 1/8 s"),
        ((0.0, 0.0), 2.1, "audio from 0 s for 2.1"),
        ((0.0, 0.0), 1.9, "audio from 0 s for 1.9"),
        ((0.0, 0.0), 1.9375, "audio from 0 s for 1.9375"),
        ((0.0, 0.0), 1.95, None),
        ((0.0, 0.0), None, "lacks its audio"),
    ],
)
def test_the_written_video_is_checked(
    late: tuple[float, float],
    seconds: float | None,
    problem: str | None,
    silent: Path,
    tmp_path: Path,
    noise: Callable[..., Any],
    write_wav: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A late picture or audio, audio that is a frame too long or short, and missing audio are refused."""
    source = write_wav(tmp_path / "a.wav", noise(round((seconds or 2) * 48000)), 48000)

    def add_audio(video: Path, speech: object, output: Path, *, duration: Fraction) -> None:
        streams = [ffmpeg.own_input(video, itsoffset=late[0]).video, ffmpeg.own_input(source, itsoffset=late[1]).audio]
        if seconds is None:
            del streams[1]
        command = arguments.output(*streams, str(output), vcodec="copy", acodec="flac", strict=-2, **mp4_options())
        ffmpeg.run(command, doing="adding audio", error=PermanentError)

    monkeypatch.setattr("s2v_tasks.media.assembly._add_audio", add_audio)
    if problem is None:
        mux(silent, source, tmp_path / "muxed.mp4", num_frames=32, fps=16)
        return
    with pytest.raises(TransientError, match=problem):
        mux(silent, source, tmp_path / "muxed.mp4", num_frames=32, fps=16)


@pytest.mark.parametrize("lacks", ["sound", "picture"])
def test_file_without_durations_is_not_delivered(
    lacks: str,
    silent: Path,
    tmp_path: Path,
    noise: Callable[..., Any],
    write_wav: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A muxed file is refused if the duration of a stream is unknown."""
    times = {"start_time": "0", "duration": "2"}
    streams = {kind: times | {"codec_type": kind} for kind in ("audio", "video")}
    del streams["audio" if lacks == "sound" else "video"]["duration"]
    found = Probe.model_validate({"format": {"format_name": "mp4"}, "streams": list(streams.values())})
    monkeypatch.setattr("s2v_tasks.media.assembly.probe", lambda *_, **__: found)
    monkeypatch.setattr("s2v_tasks.media.assembly.check_profile", lambda *_, **__: found.video)
    with pytest.raises(TransientError, match=r"muxed\.mp4 lacks its audio or its durations"):
        mux(silent, write_wav(tmp_path / "a.wav", noise(8000), 8000), tmp_path / "muxed.mp4", num_frames=32, fps=16)


def test_sound_has_the_bit_rate_of_good_music(
    silent: Path, tmp_path: Path, noise: Callable[..., Any], write_wav: Callable[..., Path]
) -> None:
    """Noise is encoded with 192 kbit/s."""
    source = write_wav(tmp_path / "a.wav", noise(2 * 44100, 2), 44100)
    mux(silent, source, tmp_path / "muxed.mp4", num_frames=32, fps=16)
    num_bytes = (tmp_path / "muxed.mp4").stat().st_size - silent.stat().st_size
    assert num_bytes * 8 / 2 == pytest.approx(192_000, rel=0.1)


@pytest.mark.parametrize("chunk", [4_800, 9_600, 1 << 18])
def test_preview_takes_no_more_than_it_plays(
    chunk: int,
    silent: Path,
    tmp_path: Path,
    noise: Callable[..., Any],
    write_wav: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A video of 2 s decodes only the first seconds of a long speech, for any size of blocks."""
    source = write_wav(tmp_path / "a.wav", noise(60 * 48000), 48000)
    taken = []
    blocks = SpeechSource.blocks

    def counted(speech: SpeechSource) -> Iterator[Any]:
        for block in blocks(speech):
            taken.append(len(block))
            yield block

    monkeypatch.setattr(SpeechSource, "blocks", counted)
    monkeypatch.setattr("s2v_tasks.media.speech_source._CHUNK_SAMPLES", chunk)
    mux(silent, source, tmp_path / "muxed.mp4", num_frames=32, fps=16)
    assert 3 * 48000 <= sum(taken) <= max(3 * 48000, chunk)
    sound = _decoded(tmp_path / "muxed.mp4")
    assert abs(len(sound) - 2 * 48000) < 2048
    assert np.abs(sound[-4000:]).max() > 0.3
