"""Compare the audio that the model gets with the audio of the video."""

import struct
from collections.abc import Callable
from fractions import Fraction
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple

import ffmpeg as arguments
import numpy as np
import numpy.typing as npt
import pytest
from structlog.testing import capture_logs

from s2v_tasks.errors import PermanentError
from s2v_tasks.media import ffmpeg
from s2v_tasks.media.assembly import mux
from s2v_tasks.media.encode import Frames, encode_clip
from s2v_tasks.media.speech import SpeechInfo, load_waveform, normalise_speech

RATE = 48_000
SECONDS = 4
Samples = npt.NDArray[np.float64]
Make = Callable[..., Path]
# Packets that lie between 1.5 and 2.5 s are lost; the noise is at 0 from 1.4 to 2.6 s, so that no codec rings.
LOST = "noise=drop='between(pts*tb,1.5,2.5)'"
OPUS, AAC = {"acodec": "libopus"}, {"acodec": "aac", "audio_bitrate": "192k"}


class Decoded(NamedTuple):
    """The waveform of the model, and the audio of the video at the same rate, the mean of its channels."""

    info: SpeechInfo
    model: npt.NDArray[np.float32]
    video: npt.NDArray[np.float32]


@pytest.fixture
def voice() -> Samples:
    """4 s `[n, 1]` of noise with the rhythm of syllables and a pause from 1.4 to 2.6 s."""
    random = np.random.default_rng(3)
    samples = random.uniform(-0.3, 0.3, (SECONDS * RATE, 1))
    for at in range(0, SECONDS * RATE, RATE // 4):
        samples[at + random.integers(6000, 9000) : at + RATE // 4] *= 0.01
    samples[round(1.4 * RATE) : round(2.6 * RATE)] = 0
    return samples


@pytest.fixture
def make(tmp_path: Path, write_wav: Callable[..., Path]) -> Make:
    """Writes tracks of samples `[n, channels]` to a file, with ffmpeg's output options."""

    def run(name: str, *tracks: Samples, late: float = 0, picture: bool = False, **options: Any) -> Path:
        files = [write_wav(tmp_path / f"track{k}.wav", samples, RATE) for k, samples in enumerate(tracks)]
        streams = [ffmpeg.uploaded_input(file, "wav", itsoffset=late)["a:0"] for file in files]
        if picture:
            streams.insert(0, arguments.input("color=s=64x64:r=16:d=6", f="lavfi").video)
            options |= {"vcodec": "libvpx" if name.endswith("webm") else "libx264"}
        output = arguments.output(*streams, ffmpeg.file_url(tmp_path / name), **options)
        ffmpeg.run(output, doing=f"making {name}", error=PermanentError)
        return tmp_path / name

    return run


@pytest.fixture
def decode(tmp_path: Path, moving: Callable[..., Frames]) -> Callable[[Path], Decoded]:
    """Stages a speech and muxes it with a video of its length."""

    def run(source: Path) -> Decoded:
        info = normalise_speech(source, tmp_path / "16k.wav", max_duration_seconds=30)
        num_frames = ceil(info.duration_seconds * 16)
        encode_clip(moving(num_frames, width=64), tmp_path / "silent.mp4")
        mux(tmp_path / "silent.mp4", source, tmp_path / "muxed.mp4", num_frames=num_frames, fps=16)
        channels = 2 if source.stem.endswith("stereo") else 1
        command = ffmpeg.own_input(tmp_path / "muxed.mp4").audio.output("pipe:1", format="f32le", ar=16000)
        raw = b"".join(ffmpeg.read_chunks(command, 1 << 16, doing="decoding", error=PermanentError))
        video = np.frombuffer(raw, np.float32).reshape(-1, channels).mean(axis=1)
        return Decoded(info, load_waveform(tmp_path / "16k.wav"), video)

    return run


def _lag_seconds(later: npt.NDArray[Any], earlier: npt.NDArray[Any]) -> float:
    """Return the lag of the first against the second in seconds, by cross-correlation."""
    size = 1 << 18
    product = np.fft.rfft(later, size) * np.conj(np.fft.rfft(earlier, size))
    peak = int(np.fft.irfft(product).argmax())
    return (peak - size * (peak > size // 2)) / 16000


def _assert_in_sync(decoded: Decoded, voice: Samples) -> None:
    """Check that the three agree within a millisecond, before and after the pause, and in loudness."""
    spoken = voice[::3, 0]
    for part in (slice(0, 22_000), slice(42_000, 60_000)):
        assert abs(_lag_seconds(decoded.model[part], decoded.video[part])) <= 0.001
        assert abs(_lag_seconds(decoded.model[part], spoken[part])) <= 0.001
        levels = [np.sqrt(np.mean(np.square(sound[part]))) for sound in (decoded.model, decoded.video)]
        assert levels[0] == pytest.approx(levels[1], rel=0.1)
    pause = slice(round(1.45 * 16000), round(2.55 * 16000))
    assert max(np.abs(decoded.model[pause]).max(), np.abs(decoded.video[pause]).max()) < 0.01


@pytest.mark.parametrize(
    ("name", "picture", "options"),
    [
        ("a.webm", False, OPUS),
        ("a.webm", True, OPUS),
        ("a.m4a", False, AAC),
        ("a.mp4", True, AAC),
        ("a.mp4", False, OPUS),
        ("a.mkv", False, {"acodec": "flac"}),
        ("a.mkv", True, {"acodec": "pcm_s16le"}),
        ("a.ogg", False, OPUS | {"page_duration": 20_000}),  # a page of Ogg has one stamp
    ],
)
def test_lost_packets_are_silence(
    name: str, picture: bool, options: dict[str, Any], voice: Samples, make: Make, decode: Callable[[Path], Decoded]
) -> None:
    """A second without packets is a second of silence for the model and in the video."""
    decoded = decode(make(name, voice, picture=picture, **options, **{"bsf:a": LOST}))
    assert abs(decoded.info.duration_seconds - SECONDS) < Fraction(1, 30)
    assert decoded.info.gap_seconds == pytest.approx(1, abs=0.1)
    _assert_in_sync(decoded, voice)


def test_packets_may_be_lost_at_several_places(voice: Samples, make: Make, decode: Callable[[Path], Decoded]) -> None:
    """Lost packets near the start, in the middle and near the end shift nothing."""
    lost = "noise=drop='between(n,3,3)+between(pts*tb,1.5,2.5)+between(pts*tb,3.7,3.9)'"
    decoded = decode(make("a.webm", voice, **OPUS, **{"bsf:a": lost}))
    assert abs(decoded.info.duration_seconds - SECONDS) < Fraction(1, 30)
    assert decoded.info.gap_seconds == pytest.approx(1.22, abs=0.05)
    _assert_in_sync(decoded, voice)


@pytest.mark.parametrize(
    ("name", "picture", "options"),
    [("a.webm", False, OPUS), ("a.webm", True, OPUS), ("a.ogg", False, OPUS), ("a.mkv", False, {"acodec": "flac"})],
)
def test_late_start_is_left_out(
    name: str, picture: bool, options: dict[str, Any], voice: Samples, make: Make, decode: Callable[[Path], Decoded]
) -> None:
    """Audio that starts 0.7 s late in its container is used from its first sample on."""
    decoded = decode(make(name, voice, picture=picture, late=0.7, **options))
    assert decoded.info.duration_seconds == SECONDS
    assert decoded.info.late_seconds == pytest.approx(0.7, abs=0.002)
    assert decoded.info.gap_seconds == 0
    _assert_in_sync(decoded, voice)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.mkv", AAC),
        ("b.mkv", {"acodec": "libmp3lame"}),
        ("a.m4a", AAC),
        ("a.ogg", {"acodec": "libvorbis"}),
        ("a.webm", {"acodec": "libvorbis"}),
        ("a.mp3", {"acodec": "libmp3lame"}),
    ],
)
def test_delay_of_encoders_shifts_nothing(
    name: str, options: dict[str, Any], voice: Samples, make: Make, decode: Callable[[Path], Decoded]
) -> None:
    """Speech begins at 0 if the container states the codec delay, or if its stamps start before 0."""
    decoded = decode(make(name, voice, **options))
    assert abs(decoded.info.duration_seconds - SECONDS) < Fraction(1, 50)
    assert decoded.info.gap_seconds == 0
    _assert_in_sync(decoded, voice)


def test_silence_up_to_the_announced_end_is_kept(voice: Samples, make: Make, decode: Callable[[Path], Decoded]) -> None:
    """A complete recording that states 5.5 s ends in silence, up to its limit."""
    source = make("a.mkv", voice, acodec="flac")
    data = source.read_bytes()
    at = data.index(b"\x44\x89\x88") + 3  # Duration, milliseconds
    source.write_bytes(data[:at] + struct.pack(">d", 5500) + data[at + 8 :])
    decoded = decode(source)
    assert decoded.info.duration_seconds == Fraction(11, 2)
    assert np.abs(decoded.model[SECONDS * 16000 + 100 :]).max() < 1e-6
    _assert_in_sync(decoded, voice)
    with pytest.raises(PermanentError, match=r"lasts 5\.5 s, at most 5 s"):
        normalise_speech(source, source.with_suffix(".wav"), max_duration_seconds=5)


@pytest.mark.parametrize(("max_seconds", "refused"), [(2.5, True), (3.99, True), (4, False)])
@pytest.mark.parametrize("lost", ["null", LOST])
def test_limit_holds_where_no_length_is_announced(
    max_seconds: float, refused: bool, lost: str, voice: Samples, make: Make, tmp_path: Path
) -> None:
    """Speech beyond the limit is refused and not cut, with and without gaps."""
    source = make("a.mkv", voice, picture=True, acodec="flac", **{"bsf:a": lost})
    if not refused:
        info = normalise_speech(source, tmp_path / "16k.wav", max_duration_seconds=max_seconds)
        assert info.duration_seconds == pytest.approx(SECONDS, abs=0.001)
        return
    with pytest.raises(PermanentError, match=f"at most {max_seconds:g} s are allowed"):
        normalise_speech(source, tmp_path / "16k.wav", max_duration_seconds=max_seconds)


def test_channels_that_cancel_reach_model_and_video(
    voice: Samples, make: Make, decode: Callable[[Path], Decoded]
) -> None:
    """One of two inverted channels is used for model and video, with a note."""
    decoded = decode(make("a.wav", np.concatenate([voice, -voice], axis=1)))
    _assert_in_sync(decoded, voice)
    assert np.abs(decoded.model).max() > 0.2
    assert (decoded.info.channels, decoded.info.mix) == (2, "channel 1 of 2")
    (note,) = decoded.info.notes
    assert "use channel 1 of 2 of the speech only, because a mix of all channels loses 100% of the sound" in note


def test_speech_in_the_centre_is_kept(voice: Samples, make: Make, decode: Callable[[Path], Decoded]) -> None:
    """Speech in the centre of 5.1 reaches the model and both channels of the video 3 dB lower, without a note."""
    surround = np.zeros((len(voice), 6))
    surround[:, 2] = voice[:, 0]
    decoded = decode(make("a-stereo.wav", surround))
    _assert_in_sync(decoded, voice)
    assert (decoded.info.mix, decoded.info.notes) == ("stereo of 5.1", ())
    expected = np.sqrt(np.mean(np.square(voice)) / 3) * 0.5**0.5  # white noise: 16 kHz hold a third of it
    assert np.sqrt(np.mean(np.square(decoded.model))) == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize(
    ("levels", "default", "chosen", "why"),
    [
        ((0, 1), 0, 2, "track 1 is silent"),
        ((0, 0, 1), 0, 3, "track 1 is silent"),
        ((1, 0), 0, 1, "players choose it, too"),
        ((1, 0.5, 1), 1, 2, "players choose it, too"),
        ((1, 0), 1, 1, "track 2 is silent"),
        ((0, 0), 1, 2, "players choose it, too"),
    ],
)
def test_track_with_speech_is_used(
    levels: tuple[float, ...], default: int, chosen: int, why: str, voice: Samples, make: Make,
    decode: Callable[[Path], Decoded],
) -> None:  # fmt: skip
    """The track that players choose is used, unless it is silent and another is not; a note names it."""
    tracks = [np.roll(voice, k, axis=0) * level for k, level in enumerate(levels)]
    marks = {f"disposition:a:{k}": "default" if k == default else "0" for k in range(len(levels))}
    decoded = decode(make("a.mkv", *tracks, acodec="flac", **marks))
    assert (decoded.info.track, decoded.info.num_tracks) == (chosen, len(levels))
    assert f"has {len(levels)} audio tracks; track {chosen} is used ({why}" in decoded.info.notes[0]
    if levels[chosen - 1] == 1:
        _assert_in_sync(decoded, voice)


def test_gap_is_that_of_the_used_track(voice: Samples, make: Make, decode: Callable[[Path], Decoded]) -> None:
    """Gaps are those of the second track if that one is used."""
    decoded = decode(make("a.mkv", voice * 0, voice, acodec="flac", **{"bsf:a:1": LOST}))
    assert (decoded.info.track, decoded.info.gap_seconds) == (2, pytest.approx(1, abs=0.1))
    _assert_in_sync(decoded, voice)


def test_noise_in_the_first_track_is_no_speech(voice: Samples, make: Make, decode: Callable[[Path], Decoded]) -> None:
    """A track of steady noise is not used if another varies like speech."""
    hiss = np.random.default_rng(5).uniform(-0.1, 0.1, voice.shape)
    assert decode(make("a.mkv", hiss, voice, acodec="flac")).info.track == 2
    assert decode(make("b.mkv", hiss, hiss[::-1], acodec="flac")).info.track == 1


def test_track_that_cannot_be_read_does_not_count(
    voice: Samples, make: Make, decode: Callable[[Path], Decoded]
) -> None:
    """Damage in another track than the used one is no error."""
    source = make("a.mkv", voice, voice * 0.5, acodec="flac")
    data = bytearray(source.read_bytes())
    data[data.rindex(b"\x1cS\xbbk") - 40] ^= 1  # in the last block before the cues, which is of the second track
    source.write_bytes(data)
    with capture_logs() as logs:
        assert decode(source).info.track == 1
    assert {(entry["event"], entry["track"]) for entry in logs if "track" in entry} == {("audio_track_unreadable", 2)}


@pytest.mark.parametrize("name", ["a.webm", "a.mkv", "a.mp4"])
@pytest.mark.parametrize("picture", [True, False])
def test_cut_off_recording_is_refused(name: str, picture: bool, voice: Samples, make: Make, tmp_path: Path) -> None:
    """A file without its last tenth is refused and not filled with silence."""
    source = make(name, voice, picture=picture, **(OPUS if name == "a.webm" else AAC), movflags="+faststart")
    data = source.read_bytes()
    source.write_bytes(data[: len(data) * 9 // 10])
    with pytest.raises(PermanentError, match=r"damaged or cut off: its .* states"):
        normalise_speech(source, tmp_path / "16k.wav", max_duration_seconds=30)


@pytest.mark.parametrize(
    ("name", "options"), [("a.mkv", AAC), ("a.webm", OPUS), ("a.ogg", OPUS), ("a.ogg", {"acodec": "libvorbis"})]
)
def test_hole_in_a_recording_is_no_silence(
    name: str, options: dict[str, Any], voice: Samples, make: Make, tmp_path: Path
) -> None:
    """A gap in the stamps is damage if bytes are missing."""
    source = make(name, voice + 1e-3, **options)
    data = bytearray(source.read_bytes())
    data[len(data) // 3 : len(data) // 3 + 9000] = bytes(9000)
    source.write_bytes(data)
    with pytest.raises(PermanentError, match="damaged"):
        normalise_speech(source, tmp_path / "16k.wav", max_duration_seconds=30)
