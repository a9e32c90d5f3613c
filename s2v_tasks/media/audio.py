"""Speech: from any uploaded sound file to what the audio encoder hears, and how long and how loud it is."""

import tempfile
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, log10
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from s2v_tasks.errors import PermanentError
from s2v_tasks.media.containers import missing_end, without_junk
from s2v_tasks.media.ffmpeg import AUDIO_FORMATS, feed, file_url, pipe_input, run, uploaded_input
from s2v_tasks.media.probe import Probe, Stream, probe

SPEECH_SAMPLE_RATE = 16_000
QUIETEST_DBFS = -120.0
_VIDEO_FPS = 16
_ACCEPTED = "WAV, MP3, FLAC, Ogg/Opus or M4A"
# Containers that tell the length of the sound itself; in the others it is an estimate from the bit rate.
_LENGTH_UNKNOWN_IN = frozenset({"mp3", "aac", "amr"})
_LENGTH_TOLERANCE_SECONDS = Fraction(1, 10)

Waveform = npt.NDArray[np.float32]


@dataclass(frozen=True)
class SpeechInfo:
    """The speech as decoded, before resampling.

    `num_samples` per channel at `sample_rate`; levels are of the 16 kHz mono waveform, in dB of full scale.
    """

    num_samples: int
    sample_rate: int
    channels: int
    codec: str
    rms_dbfs: float
    peak_dbfs: float

    @property
    def duration_seconds(self) -> Fraction:
        """Exact length."""
        return Fraction(self.num_samples, self.sample_rate)


def normalise_speech(source: Path, wav_16k: Path, *, max_duration_seconds: float) -> SpeechInfo:
    """Decode `source` completely and write it as 16 kHz mono float32 WAV (spec b.1), with reproducible bytes.

    Raises PermanentError, in one sentence, if the file is empty, no sound file, damaged or cut off, longer than the
    bound or shorter than one video frame.
    """
    name = source.name
    if source.stat().st_size == 0:
        raise PermanentError(f"The speech {name} is empty (0 bytes): upload a {_ACCEPTED} file.")
    format_name = _probe_speech(source)[0].container.format_name
    problem = missing_end(source, format_name)
    if problem is not None:
        raise PermanentError(
            f"The speech {name} is damaged or cut off: {problem}; upload the complete file, or re-export the file."
        )
    with tempfile.TemporaryDirectory(dir=wav_16k.parent) as scratch:
        sound = without_junk(source, format_name, Path(scratch))
        found, stream = _probe_speech(sound)
        _refuse_longer(name, stream.duration or Fraction(0), max_duration_seconds)
        native = _decode(sound, stream, Path(scratch) / "native.f32", max_duration_seconds)
        num_samples = _delivered_samples(name, native.shape[0], found, stream)
        duration = Fraction(num_samples, stream.sample_rate)
        _refuse_longer(name, duration, max_duration_seconds)
        if duration < Fraction(1, _VIDEO_FPS):
            raise PermanentError(
                f"The speech {name} lasts {float(duration):.4f} s, less than one video frame (1/{_VIDEO_FPS} s): "
                "upload a longer one."
            )
        waveform = _resample(name, native[:num_samples], stream.sample_rate)
    _write_wav(waveform, wav_16k)
    return SpeechInfo(
        num_samples=num_samples,
        sample_rate=stream.sample_rate,
        channels=stream.channels,
        codec=stream.codec_name,
        rms_dbfs=rms_dbfs(waveform),
        peak_dbfs=_dbfs(float(np.abs(waveform).max())),
    )


def load_waveform(path: Path) -> Waveform:
    """Samples `[n]` float32 of a 16 kHz mono WAV written by `normalise_speech`."""
    waveform, sample_rate = soundfile.read(path, dtype="float32")
    if sample_rate != SPEECH_SAMPLE_RATE or waveform.ndim != 1:
        raise PermanentError(
            f"{path.name} has {sample_rate} Hz and shape {waveform.shape}, expected {SPEECH_SAMPLE_RATE} Hz mono: "
            "stage the inputs again."
        )
    return np.asarray(waveform)


def rms_dbfs(waveform: Waveform) -> float:
    """Root mean square in dB of full scale, never below -120 (digital silence, no samples)."""
    return _dbfs(float(np.sqrt(np.mean(np.square(waveform, dtype=np.float64))))) if waveform.size else QUIETEST_DBFS


def _probe_speech(source: Path) -> tuple[Probe, Stream]:
    doing = f"The speech {source.name} is not a readable sound file (expected {_ACCEPTED}): reading it"
    found = probe(source, doing=doing, error=PermanentError, formats=AUDIO_FORMATS)
    stream = found.audio
    if stream is None or stream.sample_rate <= 0 or stream.channels <= 0:
        kinds = ", ".join(sorted({s.codec_type for s in found.streams})) or "nothing"
        raise PermanentError(f"The speech {source.name} has no sound, only {kinds}: upload a {_ACCEPTED} file.")
    return found, stream


def _refuse_longer(name: str, duration: Fraction, max_duration_seconds: float) -> None:
    if duration > max_duration_seconds:
        raise PermanentError(
            f"The speech {name} lasts {float(duration):.1f} s, at most {max_duration_seconds:g} s are allowed: "
            "shorten it or raise the limit (S2V_MAX_AUDIO_SECONDS)."
        )


def _decode(source: Path, stream: Stream, raw: Path, max_duration_seconds: float) -> npt.NDArray[np.float32]:
    """All samples `[n, channels]` at the native rate, mapped from `raw`; a little beyond the bound at most."""
    sound = uploaded_input(source, AUDIO_FORMATS)["a:0"]
    output = sound.output(
        file_url(raw),
        format="f32le",
        acodec="pcm_f32le",
        ar=stream.sample_rate,
        ac=stream.channels,
        t=max_duration_seconds + 1,
    )
    run(output, doing=f"The speech {source.name} is damaged: decoding it", error=PermanentError)
    if raw.stat().st_size == 0:
        raise PermanentError(f"The speech {source.name} holds no samples: upload a {_ACCEPTED} file.")
    return np.memmap(raw, dtype=np.float32, mode="r").reshape(-1, stream.channels)


def _delivered_samples(name: str, num_decoded: int, found: Probe, stream: Stream) -> int:
    """Samples that count: a codec's padding after the declared end is left out, a missing end is an error."""
    declared = stream.duration or (found.container.duration if len(found.streams) == 1 else None)
    if declared is None or found.container.format_name in _LENGTH_UNKNOWN_IN:
        return num_decoded
    decoded = Fraction(num_decoded, stream.sample_rate)
    if decoded < declared - _LENGTH_TOLERANCE_SECONDS:
        raise PermanentError(
            f"The speech {name} is damaged or cut off: it announces {float(declared):.2f} s and only "
            f"{float(decoded):.2f} s can be decoded; upload the complete file."
        )
    # Only a container with an edit list declares the length of the sound without the codec's padding.
    return (
        min(num_decoded, ceil(declared * stream.sample_rate)) if "mp4" in found.container.format_name else num_decoded
    )


def _resample(name: str, native: npt.NDArray[np.float32], sample_rate: int) -> Waveform:
    """The waveform that librosa's loader gives, bit for bit (spec b.1); see docs/adr/0005-resampling.md."""
    mono: Waveform = native.mean(axis=1)
    if not np.isfinite(mono).all():
        raise PermanentError(
            f"The speech {name} holds samples that are not numbers (NaN or infinite): export it again."
        )
    if sample_rate == SPEECH_SAMPLE_RATE:
        return mono
    num_samples = ceil(len(mono) * (SPEECH_SAMPLE_RATE / sample_rate))  # in this order: librosa's rounding
    resampled = soxr.resample(mono, sample_rate, SPEECH_SAMPLE_RATE, quality="HQ")[:num_samples]
    return np.pad(resampled, (0, num_samples - len(resampled)))


def _write_wav(waveform: Waveform, path: Path) -> None:
    # Not soundfile: it stamps a float WAV with the time of day, and equal speech must give equal bytes.
    sound: Any = pipe_input(format="f32le", ar=SPEECH_SAMPLE_RATE, ac=1)
    output = sound.output(file_url(path), format="wav", acodec="pcm_f32le", fflags="+bitexact", map_metadata=-1)
    feed(output, [waveform.data.cast("B")], doing=f"writing {path.name}", error=PermanentError)


def _dbfs(amplitude: float) -> float:
    return max(QUIETEST_DBFS, 20 * log10(amplitude)) if amplitude > 0 else QUIETEST_DBFS
