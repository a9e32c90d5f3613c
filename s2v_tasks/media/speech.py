"""Normalise the speech: any uploaded audio file becomes the input of the audio encoder, with its length and levels."""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from s2v_tasks.errors import PermanentError
from s2v_tasks.log import get_logger
from s2v_tasks.media.ffmpeg import feed, file_url, pipe_input
from s2v_tasks.media.frames import QUIETEST_DBFS, dbfs
from s2v_tasks.media.speech_source import SpeechSource, open_speech
from s2v_tasks.schemas.plan import FPS

SPEECH_SAMPLE_RATE = 16_000
_NOTABLE_LOSS = 0.1

Waveform = npt.NDArray[np.float32]


@dataclass(frozen=True)
class SpeechInfo:
    """The speech as decoded, before resampling.

    `num_samples` per channel at `sample_rate`, with the silence of gaps; levels are of the 16 kHz mono waveform, in dB
    of full scale. `notes` are sentences about tracks and channels that are not used.
    """

    num_samples: int
    sample_rate: int
    channels: int
    codec: str
    rms_dbfs: float
    peak_dbfs: float
    track: int
    num_tracks: int
    mix: str
    gap_seconds: float
    late_seconds: float
    notes: tuple[str, ...]

    @property
    def duration_seconds(self) -> Fraction:
        """Return the exact length in seconds."""
        return Fraction(self.num_samples, self.sample_rate)


def normalise_speech(source: Path, wav_16k: Path, *, max_duration_seconds: float) -> SpeechInfo:
    """Decode `source` completely and write it as 16 kHz mono float32 WAV (spec b.1), with reproducible bytes.

    Raises PermanentError, in one sentence, if the file is empty, no audio file, damaged or cut off, longer than the
    bound or shorter than one video frame.
    """
    with open_speech(source, wav_16k.parent, max_duration_seconds=max_duration_seconds) as speech:
        resampler = _Resampler(speech.stream.sample_rate)
        for block in speech.blocks():
            resampler.feed(block.mean(axis=1))
    duration = Fraction(resampler.num_samples, speech.stream.sample_rate)
    if duration < Fraction(1, FPS):
        raise PermanentError(
            f"The speech {source.name} lasts {float(duration):.4f} s, less than one video frame (1/{FPS} s): "
            "upload a longer one."
        )
    waveform, notes = resampler.finish(), tuple(_notes(speech))
    for note in notes:
        get_logger().warning("speech_is_not_plain", note=note)
    _write_wav(waveform, wav_16k)
    return SpeechInfo(
        num_samples=resampler.num_samples,
        sample_rate=speech.stream.sample_rate,
        channels=speech.stream.channels,
        codec=speech.stream.codec_name,
        rms_dbfs=rms_dbfs(waveform),
        peak_dbfs=dbfs(float(np.abs(waveform).max())),
        track=speech.track + 1,
        num_tracks=speech.num_tracks,
        mix=speech.mix.name,
        gap_seconds=speech.timeline.num_silent / speech.stream.sample_rate,
        late_seconds=float(speech.timeline.start),
        notes=notes,
    )


def load_waveform(path: Path) -> Waveform:
    """Return the samples `[n]` float32 of a 16 kHz mono WAV that `normalise_speech` has written."""
    waveform, sample_rate = soundfile.read(path, dtype="float32")
    if sample_rate != SPEECH_SAMPLE_RATE or waveform.ndim != 1:
        raise PermanentError(
            f"{path.name} has {sample_rate} Hz and shape {waveform.shape}, expected {SPEECH_SAMPLE_RATE} Hz mono: "
            "stage the inputs again."
        )
    return np.asarray(waveform)


def rms_dbfs(waveform: Waveform) -> float:
    """Return the root mean square in dB of full scale, at least -120 (digital silence, no samples)."""
    return dbfs(float(np.sqrt(np.mean(np.square(waveform, dtype=np.float64))))) if waveform.size else QUIETEST_DBFS


def _notes(speech: SpeechSource) -> Iterator[str]:
    """Yield sentences about the choice of track and channels."""
    if speech.num_tracks > 1:
        why = speech.track_reason or "players choose it, too"
        yield (
            f"The speech has {speech.num_tracks} audio tracks; track {speech.track + 1} is used ({why}): "
            "upload a file with one track to choose another."
        )
    if speech.mix.reason:
        yield (
            f"Model and video use {speech.mix.name} of the speech only, because {speech.mix.reason}. "
            "Upload a mono file to choose another channel."
        )
    if speech.mix.lost > _NOTABLE_LOSS:
        yield (
            f"{speech.mix.lost:.0%} of the speech is lost for the model: it is neither in {speech.mix.name} nor in "
            "another mix. Upload a mono file."
        )


class _Resampler:
    """Resamples in chunks to the waveform of librosa's loader, bit for bit (spec b.1).

    See docs/adr/0005-resampling.md.
    """

    def __init__(self, sample_rate: int) -> None:
        self._sample_rate = sample_rate
        self._stream = soxr.ResampleStream(sample_rate, SPEECH_SAMPLE_RATE, 1, dtype="float32", quality="HQ")
        self._parts: list[Waveform] = []
        self.num_samples = 0

    def feed(self, mono: Waveform) -> None:
        """Add the next samples `[n]` at the native rate."""
        self.num_samples += len(mono)
        self._parts.append(self._stream.resample_chunk(mono))

    def finish(self) -> Waveform:
        """Return the whole waveform at 16 kHz."""
        self._parts.append(self._stream.resample_chunk(np.empty(0, np.float32), last=True))
        # In this order, as librosa rounds.
        num_samples = ceil(self.num_samples * (SPEECH_SAMPLE_RATE / self._sample_rate))
        resampled = np.concatenate(self._parts)[:num_samples]
        return np.pad(resampled, (0, num_samples - len(resampled)))


def _write_wav(waveform: Waveform, path: Path) -> None:
    # soundfile writes the time of day into a float WAV, and equal speech must give equal bytes.
    raw: Any = pipe_input(format="f32le", ar=SPEECH_SAMPLE_RATE, ac=1)
    output = raw.output(file_url(path), format="wav", acodec="pcm_f32le", fflags="+bitexact", map_metadata=-1)
    feed(output, [waveform.data.cast("B")], doing=f"writing {path.name}", error=PermanentError)
