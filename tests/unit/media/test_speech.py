"""Check the normalisation of speech."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import librosa
import numpy as np
import numpy.typing as npt
import pytest
import soundfile
from structlog.testing import capture_logs

from s2v_tasks.errors import PermanentError
from s2v_tasks.media.channel_mix import Mix
from s2v_tasks.media.speech import load_waveform, normalise_speech, rms_dbfs

Noise = Callable[..., npt.NDArray[np.float64]]
WriteWav = Callable[..., Path]
Convert = Callable[..., Path]
Refusal = Callable[..., str]


@pytest.mark.parametrize(
    ("seconds", "sample_rate", "channels"),
    [("5", 16000, 1), ("5.02", 44100, 2), ("19.73", 8000, 1), ("61.3", 8000, 1), ("0.0625", 48000, 1)],
)
def test_length_is_exact(
    seconds: str, sample_rate: int, channels: int, tmp_path: Path, noise: Noise, write_wav: WriteWav
) -> None:
    """The duration is that of the decoded samples, and the 16 kHz waveform is as long."""
    num_samples = int(Fraction(seconds) * sample_rate)
    source = write_wav(tmp_path / "a.wav", noise(num_samples, channels), sample_rate)
    info = normalise_speech(source, tmp_path / "16k.wav", max_duration_seconds=120)
    assert (info.num_samples, info.sample_rate, info.channels) == (num_samples, sample_rate, channels)
    assert info.duration_seconds == Fraction(seconds)
    assert load_waveform(tmp_path / "16k.wav").shape == (-(-num_samples * 16000 // sample_rate),)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.mp3", {"acodec": "libmp3lame", "audio_bitrate": "128k"}),
        ("a.mp3", {"acodec": "libmp3lame", "q:a": 4}),
        ("a.flac", {"acodec": "flac"}),
        ("a.m4a", {"acodec": "aac"}),
        ("a.ogg", {"acodec": "libopus", "ar": 48000}),
    ],
)
def test_codec_delay_and_padding_do_not_count(
    name: str, options: dict[str, str], tmp_path: Path, noise: Noise, write_wav: WriteWav, convert: Convert
) -> None:
    """Five seconds of speech stay exactly five seconds in every compressed format."""
    wav = write_wav(tmp_path / "a.wav", noise(5 * 44100), 44100)
    info = normalise_speech(convert(wav, tmp_path / name, **options), tmp_path / "16k.wav", max_duration_seconds=9)
    assert info.duration_seconds == 5
    assert info.codec == {"libmp3lame": "mp3", "libopus": "opus"}.get(options["acodec"], options["acodec"])


def test_plain_speech_has_no_note(tmp_path: Path, noise: Noise, write_wav: WriteWav) -> None:
    """The facts have the one track of a WAV without gaps, and the log has no note."""
    source = write_wav(tmp_path / "a.wav", noise(8000, 2), 16000)
    with capture_logs() as logs:
        info = normalise_speech(source, tmp_path / "16k.wav", max_duration_seconds=9)
    assert (info.codec, info.track, info.num_tracks) == ("pcm_s16le", 1, 1)
    assert (info.gap_seconds, info.late_seconds, info.notes, logs) == (0, 0, (), [])


@pytest.mark.parametrize(("sample_rate", "channels"), [(44100, 2), (8000, 1), (16000, 2), (22050, 1)])
def test_waveform_is_librosas(
    sample_rate: int, channels: int, tmp_path: Path, noise: Noise, write_wav: WriteWav
) -> None:
    """The input of the audio encoder is that of librosa's loader, bit for bit (spec b.1)."""
    source = write_wav(tmp_path / "a.wav", noise(sample_rate + 123, channels), sample_rate)
    normalise_speech(source, tmp_path / "16k.wav", max_duration_seconds=9)
    native, _ = soundfile.read(source, dtype="float32", always_2d=True)  # what librosa.load does with a WAV
    reference = librosa.resample(librosa.to_mono(native.T), orig_sr=sample_rate, target_sr=16000)
    waveform = load_waveform(tmp_path / "16k.wav")
    assert waveform.dtype == np.float32
    np.testing.assert_array_equal(waveform, reference)


def test_equal_speech_gives_equal_bytes(tmp_path: Path, noise: Noise, write_wav: WriteWav) -> None:
    """The 16 kHz file has no time stamp, so that its digest identifies the speech."""
    source = write_wav(tmp_path / "a.wav", noise(4000), 8000)
    for name in ("one.wav", "two.wav"):
        normalise_speech(source, tmp_path / name, max_duration_seconds=9)
    one, two = ((tmp_path / name).read_bytes() for name in ("one.wav", "two.wav"))
    assert one == two
    assert b"PEAK" not in one
    assert b"Lavf" not in one


@pytest.mark.parametrize(
    "text",
    [
        "To be, or not to be\n" * 50,
        "#EXTM3U\n#EXTINF:5,\nother.wav\n",
        "ffconcat version 1.0\nfile other.wav\n",
        '<svg xmlns="http://www.w3.org/2000/svg" width="64" height="64"/>',
    ],
)
def test_text_named_wav_is_refused(
    text: str, tmp_path: Path, noise: Noise, write_wav: WriteWav, refusal: Refusal
) -> None:
    """Text, playlists, concat scripts and drawings are refused under any name, and open no other file."""
    write_wav(tmp_path / "other.wav", noise(16000), 16000)
    (tmp_path / "a.wav").write_text(text)
    assert "not a readable audio file" in refusal(tmp_path / "a.wav")


def test_empty_file_is_refused(tmp_path: Path, refusal: Refusal) -> None:
    """A file of 0 bytes is named as such."""
    (tmp_path / "a.mp3").touch()
    assert "empty" in refusal(tmp_path / "a.mp3")


def test_too_long_speech_is_refused(tmp_path: Path, noise: Noise, write_wav: WriteWav, refusal: Refusal) -> None:
    """A speech beyond the bound is refused with its length and the limit."""
    source = write_wav(tmp_path / "a.wav", noise(3 * 8000), 8000)
    assert "lasts 3.0 s, at most 2.5 s" in refusal(source, max_duration_seconds=2.5)


def test_too_long_speech_of_undeclared_length_is_refused(
    tmp_path: Path, noise: Noise, write_wav: WriteWav, convert: Convert, refusal: Refusal
) -> None:
    """Without a reliable length in the header, the limit holds while decoding."""
    wav = write_wav(tmp_path / "a.wav", noise(3 * 44100), 44100)
    source = convert(wav, tmp_path / "a.aac", acodec="aac", audio_bitrate="64k")
    assert "at most 2.5 s" in refusal(source, max_duration_seconds=2.5)


def test_speech_shorter_than_a_frame_is_refused(
    tmp_path: Path, noise: Noise, write_wav: WriteWav, refusal: Refusal
) -> None:
    """Speech of one sample less than 1/16 s is refused."""
    source = write_wav(tmp_path / "a.wav", noise(499), 8000)
    assert "less than one video frame" in refusal(source)


def test_speech_with_broken_numbers_is_refused(
    tmp_path: Path, convert: Convert, noise: Noise, refusal: Refusal
) -> None:
    """Speech with NaN samples is refused."""
    samples = noise(8000).astype("<f4")
    samples[4000] = np.nan
    header = b"RIFF\0\0\0\0WAVEfmt " + bytes([16, 0, 0, 0, 3, 0, 1, 0]) + (8000).to_bytes(4, "little")
    header += (32000).to_bytes(4, "little") + bytes([4, 0, 32, 0]) + b"data" + (32000).to_bytes(4, "little")
    (tmp_path / "a.wav").write_bytes(header + samples.tobytes())
    assert "not numbers" in refusal(tmp_path / "a.wav")


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize(
    ("peak", "problem"), [(101, "samples of 101: expected 1 at full scale"), (np.inf, "not numbers")]
)
def test_float_sound_far_above_full_scale_is_refused(
    channels: int, peak: float, problem: str, tmp_path: Path, noise: Noise, refusal: Refusal
) -> None:
    """Float samples of some times full scale are accepted; larger ones, which cannot be muxed, are refused."""
    samples = noise(16_000, channels)
    samples[4000, -1] = -100
    soundfile.write(tmp_path / "a.wav", samples, 16_000, subtype="FLOAT")
    info = normalise_speech(tmp_path / "a.wav", tmp_path / "16k.wav", max_duration_seconds=9)
    assert info.peak_dbfs == pytest.approx(40 if channels == 1 else 34, abs=0.1)
    samples[4000, -1] = -peak
    soundfile.write(tmp_path / "a.wav", samples, 16_000, subtype="FLOAT")
    assert problem in refusal(tmp_path / "a.wav")


def test_video_without_sound_is_refused(tmp_path: Path, moving: Callable[..., object], refusal: Refusal) -> None:
    """A video without audio is refused."""
    from s2v_tasks.media.encode import encode_clip

    encode_clip(moving(4), tmp_path / "a.mp4")  # type: ignore[arg-type]
    assert "has no audio, only video" in refusal(tmp_path / "a.mp4")


def test_a_track_that_states_no_rate_is_refused(
    tmp_path: Path, noise: Noise, write_wav: WriteWav, convert: Convert, refusal: Refusal
) -> None:
    """The refusal names what the file states, or that no track is left."""
    write_wav(tmp_path / "a.wav", noise(8000), 16_000)
    sound = convert(tmp_path / "a.wav", tmp_path / "a.m4a", acodec="aac", movflags="+faststart").read_bytes()
    for box, problem in ((b"stsd", "states 0 channels of 0 Hz"), (b"trak", "has no audio, and no other track")):
        (tmp_path / "b.m4a").write_bytes(sound.replace(box, b"none"))
        assert problem in refusal(tmp_path / "b.m4a")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.wav", {}),
        ("a.flac", {"acodec": "flac"}),
        ("a.m4a", {"acodec": "aac", "movflags": "+faststart"}),
        ("a.ogg", {"acodec": "libopus", "ar": 48000}),
        ("a.webm", {"acodec": "libopus", "ar": 48000}),
        ("a.aac", {"acodec": "aac"}),
    ],
)
def test_truncated_file_is_refused(
    name: str,
    options: dict[str, str],
    tmp_path: Path,
    noise: Noise,
    write_wav: WriteWav,
    convert: Convert,
    refusal: Refusal,
) -> None:
    """Half a file is refused and not read as a short speech."""
    wav = write_wav(tmp_path / "source.wav", noise(4 * 44100), 44100)
    whole = convert(wav, tmp_path / f"whole-{name}", **options).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    assert refusal(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "options"),
    [("a.mp3", {"acodec": "libmp3lame"}), ("a.flac", {}), ("a.ogg", {"acodec": "libvorbis"}), ("a.m4a", {})],
)
def test_damaged_file_is_refused(
    name: str,
    options: dict[str, str],
    tmp_path: Path,
    noise: Noise,
    write_wav: WriteWav,
    convert: Convert,
    refusal: Refusal,
) -> None:
    """Zeros in the middle of a file are damage and not silence."""
    wav = write_wav(tmp_path / "source.wav", noise(6 * 44100), 44100)
    data = bytearray(convert(wav, tmp_path / f"whole-{name}", **options).read_bytes())
    data[len(data) // 2 : len(data) // 2 + 3000] = bytes(3000)
    (tmp_path / name).write_bytes(data)
    assert "damaged" in refusal(tmp_path / name)


def test_one_flipped_bit_of_a_flac_is_found(
    tmp_path: Path, noise: Noise, write_wav: WriteWav, convert: Convert, refusal: Refusal
) -> None:
    """The checksums of FLAC are verified."""
    wav = write_wav(tmp_path / "source.wav", noise(44100), 44100)
    data = bytearray(convert(wav, tmp_path / "whole.flac").read_bytes())
    data[-2000] ^= 1
    (tmp_path / "a.flac").write_bytes(data)
    assert "damaged" in refusal(tmp_path / "a.flac")


def test_levels_of_speech_and_silence(tmp_path: Path, write_wav: WriteWav) -> None:
    """A sine has its known levels, a thousandth of it is 60 dB lower, and silence has a finite level."""
    sine = np.sin(np.arange(16000) * 2 * np.pi * 440 / 16000)[:, None] * 0.5
    info = normalise_speech(write_wav(tmp_path / "a.wav", sine, 16000), tmp_path / "16k.wav", max_duration_seconds=9)
    assert info.rms_dbfs == pytest.approx(-9.03, abs=0.01)
    assert info.peak_dbfs == pytest.approx(-6.02, abs=0.01)
    quiet = load_waveform(tmp_path / "16k.wav") * np.float32(0.001)
    assert rms_dbfs(quiet) == pytest.approx(-69.03, abs=0.01)
    assert [rms_dbfs(np.full(n, level, np.float32)) for n, level in ((0, 0), (9, 0), (9, 1e-7))] == [-120] * 3


@pytest.mark.parametrize(("sample_rate", "channels"), [(8000, 1), (16000, 2), (48000, 2)])
def test_other_wav_is_not_loaded_as_waveform(
    sample_rate: int, channels: int, tmp_path: Path, noise: Noise, write_wav: WriteWav
) -> None:
    """A WAV other than 16 kHz mono is not loaded as the waveform."""
    with pytest.raises(PermanentError, match=rf"has {sample_rate} Hz and shape \(800,.*expected 16000 Hz mono"):
        load_waveform(write_wav(tmp_path / "a.wav", noise(800, channels), sample_rate))


@pytest.mark.parametrize(("lost", "share"), [(0.0, None), (0.1, None), (0.12, "12%"), (0.4, "40%")])
def test_speech_that_no_mix_holds_is_noted(
    lost: float, share: str | None, tmp_path: Path, noise: Noise, write_wav: WriteWav, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If every mix loses more than a tenth of the speech, facts and log have a note."""
    mix = Mix("channel 2 of 2", np.array([[0, 1.0]], np.float32), lost=lost)
    monkeypatch.setattr("s2v_tasks.media.speech_source.choose_mix", lambda *_: mix)
    source = write_wav(tmp_path / "a.wav", noise(1600, 2), 16000)
    with capture_logs() as logs:
        info = normalise_speech(source, tmp_path / "16k.wav", max_duration_seconds=9)
    assert [entry["note"] for entry in logs if entry["event"] == "speech_is_not_plain"] == list(info.notes)
    assert [note.partition(" of the speech")[0] for note in info.notes] == ([] if share is None else [share])


@pytest.mark.parametrize("size", [0, 0x7FFFF000, 0xFFFFFFFF])
@pytest.mark.parametrize("num_samples", [8000, 44100, 44177])
def test_wav_of_unknown_length_is_decoded_to_its_last_sample(
    size: int, num_samples: int, tmp_path: Path, noise: Noise, write_wav: WriteWav
) -> None:
    """A WAV that was written to a pipe without sizes has the samples of one with sizes."""
    source = write_wav(tmp_path / "a.wav", noise(num_samples, 2), 44100)
    known = normalise_speech(source, tmp_path / "known.wav", max_duration_seconds=9)
    data = bytearray(source.read_bytes())
    data[4:8] = data[40:44] = size.to_bytes(4, "little")
    source.write_bytes(data + b"\1")  # and a part of a sample, as an interrupted recorder leaves it
    assert normalise_speech(source, tmp_path / "unknown.wav", max_duration_seconds=9) == known
    assert (tmp_path / "unknown.wav").read_bytes() == (tmp_path / "known.wav").read_bytes()
