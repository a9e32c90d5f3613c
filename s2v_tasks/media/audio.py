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
from s2v_tasks.media.containers import container_format, missing_end, sound_formats, too_much, without_junk
from s2v_tasks.media.ffmpeg import AUDIO_FORMATS, feed, file_url, pipe_input, read_chunks, uploaded_input
from s2v_tasks.media.probe import Probe, Stream, probe

SPEECH_SAMPLE_RATE = 16_000
QUIETEST_DBFS = -120.0
_VIDEO_FPS = 16
_ACCEPTED = "WAV, MP3, FLAC, Ogg/Opus or M4A"
# Containers that tell the length of the sound itself; in the others it is an estimate from the bit rate.
_LENGTH_UNKNOWN_IN = frozenset({"mp3", "aac", "amr"})
_SAMPLE_RATES = (4_000, 192_000)
_MOST_CHANNELS = 8
_CHUNK_SAMPLES = 1 << 18
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
    format_name = _inspect(source, max_duration_seconds)
    with tempfile.TemporaryDirectory(dir=wav_16k.parent) as scratch:
        sound = without_junk(source, format_name, Path(scratch), max_duration_seconds=max_duration_seconds)
        found, stream = _probe_speech(sound, sound_formats(sound) or format_name)
        _refuse_longer(name, stream.duration or Fraction(0), max_duration_seconds)
        _refuse_unlike_speech(name, stream)
        waveform, num_samples = _decode(sound, found, stream, max_duration_seconds)
    duration = Fraction(num_samples, stream.sample_rate)
    _refuse_longer(name, duration, max_duration_seconds)
    if duration < Fraction(1, _VIDEO_FPS):
        raise PermanentError(
            f"The speech {name} lasts {float(duration):.4f} s, less than one video frame (1/{_VIDEO_FPS} s): "
            "upload a longer one."
        )
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


def _inspect(source: Path, max_duration_seconds: float) -> str:
    """ffprobe's name of the container, after the checks that need no decoding; PermanentError where one fails."""
    formats = sound_formats(source)
    if formats is None:
        raise PermanentError(
            f"The speech {source.name} is not a readable sound file (expected {_ACCEPTED}): its first bytes are those "
            "of none."
        )
    _refuse_too_much(source, formats, max_duration_seconds)
    format_name = container_format(source, formats, doing=_reading(source))
    _refuse_too_much(source, format_name, max_duration_seconds)
    problem = missing_end(source, format_name)
    if problem is not None:
        raise PermanentError(
            f"The speech {source.name} is damaged or cut off: {problem}; upload the complete file, or re-export the "
            "file."
        )
    return format_name


def _refuse_too_much(source: Path, format_name: str, max_duration_seconds: float) -> None:
    if problem := too_much(source, format_name, max_duration_seconds):
        raise PermanentError(f"The speech {source.name} {problem}.")


def _probe_speech(source: Path, formats: str) -> tuple[Probe, Stream]:
    found = probe(source, doing=_reading(source), error=PermanentError, formats=formats)
    stream = found.audio
    if stream is None or stream.sample_rate <= 0 or stream.channels <= 0:
        kinds = ", ".join(sorted({s.codec_type for s in found.streams})) or "nothing"
        raise PermanentError(f"The speech {source.name} has no sound, only {kinds}: upload a {_ACCEPTED} file.")
    return found, stream


def _reading(source: Path) -> str:
    return f"The speech {source.name} is not a readable sound file (expected {_ACCEPTED}): reading it"


def _refuse_unlike_speech(name: str, stream: Stream) -> None:
    """Refuse what no recorder makes before it is decoded: memory grows with rate and channels."""
    lowest, highest = _SAMPLE_RATES
    if not lowest <= stream.sample_rate <= highest or stream.channels > _MOST_CHANNELS:
        raise PermanentError(
            f"The speech {name} has {stream.channels} channels of {stream.sample_rate} Hz: expected at most "
            f"{_MOST_CHANNELS} channels of {lowest} to {highest} Hz; export it as 48000 Hz mono."
        )


def _refuse_longer(name: str, duration: Fraction, max_duration_seconds: float) -> None:
    if duration > max_duration_seconds:
        raise PermanentError(
            f"The speech {name} lasts {float(duration):.1f} s, at most {max_duration_seconds:g} s are allowed: "
            "shorten it or raise the limit (S2V_MAX_AUDIO_SECONDS)."
        )


def _decode(source: Path, found: Probe, stream: Stream, max_duration_seconds: float) -> tuple[Waveform, int]:
    """The 16 kHz waveform, and the number of samples per channel at the native rate that it was made from.

    It decodes a little beyond the bound at most, and holds only what comes out in memory.
    """
    sound = uploaded_input(source, AUDIO_FORMATS)["a:0"]
    layout = {"format": "f32le", "acodec": "pcm_f32le", "ar": stream.sample_rate, "ac": stream.channels}
    output = sound.output("pipe:1", t=max_duration_seconds + 1, **layout)
    resampler = _Resampler(source.name, stream.sample_rate, _padding_begins(found, stream))
    doing = f"The speech {source.name} is damaged: decoding it"
    for chunk in read_chunks(output, _CHUNK_SAMPLES * stream.channels * 4, doing=doing, error=PermanentError):
        resampler.feed(np.frombuffer(chunk, dtype=np.float32).reshape(-1, stream.channels))
    if resampler.num_decoded == 0:
        raise PermanentError(f"The speech {source.name} holds no samples: upload a {_ACCEPTED} file.")
    _refuse_missing_samples(source.name, resampler.num_decoded, found, stream)
    return resampler.finish(), resampler.num_samples


def _padding_begins(found: Probe, stream: Stream) -> int | None:
    """The sample at which a codec's padding begins; None where the container does not tell."""
    # Only a container with an edit list declares the length of the sound without the codec's padding.
    declared = _declared_seconds(found, stream) if "mp4" in found.container.format_name else None
    return None if declared is None else ceil(declared * stream.sample_rate)


def _declared_seconds(found: Probe, stream: Stream) -> Fraction | None:
    if found.container.format_name in _LENGTH_UNKNOWN_IN:
        return None
    return stream.duration or (found.container.duration if len(found.streams) == 1 else None)


def _refuse_missing_samples(name: str, num_decoded: int, found: Probe, stream: Stream) -> None:
    declared, decoded = _declared_seconds(found, stream), Fraction(num_decoded, stream.sample_rate)
    if declared is not None and decoded < declared - _LENGTH_TOLERANCE_SECONDS:
        raise PermanentError(
            f"The speech {name} is damaged or cut off: it announces {float(declared):.2f} s and only "
            f"{float(decoded):.2f} s can be decoded; upload the complete file."
        )


class _Resampler:
    """Makes the waveform that librosa's loader gives, bit for bit (spec b.1), chunk by chunk.

    See docs/adr/0005-resampling.md. `end_sample`: what is decoded from there on does not count.
    """

    def __init__(self, name: str, sample_rate: int, end_sample: int | None) -> None:
        self._name, self._sample_rate, self._end_sample = name, sample_rate, end_sample
        self._stream = soxr.ResampleStream(sample_rate, SPEECH_SAMPLE_RATE, 1, dtype="float32", quality="HQ")
        self._parts: list[Waveform] = []
        self.num_decoded = self.num_samples = 0

    def feed(self, native: npt.NDArray[np.float32]) -> None:
        """Take the next samples `[n, channels]` at the native rate."""
        mono: Waveform = native.mean(axis=1)
        if not np.isfinite(mono).all():
            raise PermanentError(
                f"The speech {self._name} holds samples that are not numbers (NaN or infinite): export it again."
            )
        self.num_decoded += len(mono)
        if self._end_sample is not None:
            mono = mono[: max(0, self._end_sample - self.num_samples)]
        self.num_samples += len(mono)
        self._parts.append(mono if self._sample_rate == SPEECH_SAMPLE_RATE else self._stream.resample_chunk(mono))

    def finish(self) -> Waveform:
        """The whole waveform at 16 kHz."""
        if self._sample_rate == SPEECH_SAMPLE_RATE:
            return np.concatenate(self._parts)
        self._parts.append(self._stream.resample_chunk(np.empty(0, np.float32), last=True))
        num_samples = ceil(
            self.num_samples * (SPEECH_SAMPLE_RATE / self._sample_rate)
        )  # this order: librosa's rounding
        resampled = np.concatenate(self._parts)[:num_samples]
        return np.pad(resampled, (0, num_samples - len(resampled)))


def _write_wav(waveform: Waveform, path: Path) -> None:
    # Not soundfile: it stamps a float WAV with the time of day, and equal speech must give equal bytes.
    sound: Any = pipe_input(format="f32le", ar=SPEECH_SAMPLE_RATE, ac=1)
    output = sound.output(file_url(path), format="wav", acodec="pcm_f32le", fflags="+bitexact", map_metadata=-1)
    feed(output, [waveform.data.cast("B")], doing=f"writing {path.name}", error=PermanentError)


def _dbfs(amplitude: float) -> float:
    return max(QUIETEST_DBFS, 20 * log10(amplitude)) if amplitude > 0 else QUIETEST_DBFS
