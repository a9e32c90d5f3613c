"""Lip sync: opening or darkness of the mouth against the loudness of the speech.

This is not SyncNet and gives no LSE scores. It measures if and when the mouth opens with the speech. It does not check
the mouth shape of each vowel.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from s2v_tasks.schemas.quality import LipSyncQuality

Series = npt.NDArray[np.float64]

_MAX_LAG_SECONDS = 0.5
_STEP_SECONDS = 0.01
# The envelope is the root mean square in a window of this many frames around the middle of a frame.
_WINDOW_FRAMES = 1.5
# Between the opening of a mouth and the loudness that it lets out: vowels are loudest after the mouth has opened.
# Measured with drawn faces whose opening follows phoneme times (tests/unit/perception): see docs/perception.md.
_CALIBRATION_SECONDS = 0.01
# Loudness of 5 % of the loudest moment and below counts as no speech.
_FLOOR = 0.05
# Speech is audible in a frame whose compressed loudness is above this share of its range.
_AUDIBLE_ABOVE = 0.35
# Frames next to speech do not count as silence; silence is judged only if it has enough frames.
_BESIDE_SPEECH_FRAMES = 2
_MIN_SILENT_FRAMES = 8
# Range of the darkness of a mouth that moves: that of still mouths reached 0.020, of talking drawings 0.022 to 0.3.
_LEAST_DARKNESS_RANGE = 0.03


@dataclass(frozen=True)
class Mouth:
    """Opening and darkness of the mouth `[n]` per frame (`perception.landmarks`); NaN in frames without a face."""

    opening: Series
    darkness: Series


@dataclass(frozen=True)
class LipSync:
    """Result of a comparison.

    lag_seconds: positive, the mouth follows the sound. correlation: -1..1 at that lag. other_correlation: mean of the
    same search with other speech. The difference between both distinguishes sync from chance.
    """

    lag_seconds: float
    correlation: float
    other_correlation: float

    @property
    def margin(self) -> float:
        """Return the difference between both correlations."""
        return self.correlation - self.other_correlation


def measure_lip_sync(mouth: Mouth, speech: npt.NDArray[np.float32], sample_rate: int, fps: float) -> LipSyncQuality:
    """Return the lip sync of a mouth and its speech.

    Landmarks of the lips and darkness each miss some mouths. Of both, the one counts that follows this speech by more
    than other speech.
    """
    loudness = envelope(speech, sample_rate, len(mouth.opening), fps)
    audible = loudness > _AUDIBLE_ABOVE * max(float(loudness.max(initial=0.0)), 1e-6)
    silent = _in_silence(audible)
    found = compare(mouth.opening, speech, sample_rate, fps)
    darkness_range = _range(mouth.darkness[audible])
    by_darkness = None
    if darkness_range is not None and darkness_range >= _LEAST_DARKNESS_RANGE:
        by_darkness = compare(mouth.darkness, speech, sample_rate, fps)
    is_darkness = by_darkness is not None and (found is None or by_darkness.margin > found.margin)
    best = by_darkness if is_darkness else found
    return LipSyncQuality(
        lag_ms=1000 * best.lag_seconds if best else None,
        correlation=best.correlation if best else None,
        other_correlation=best.other_correlation if best else None,
        speech_share=float(audible.mean()),
        opening_range=_range(mouth.opening[audible]),
        silent_opening_range=_range(mouth.opening[silent], at_least=_MIN_SILENT_FRAMES),
        darkness_range=darkness_range if is_darkness else None,
        silent_darkness_range=_range(mouth.darkness[silent], at_least=_MIN_SILENT_FRAMES) if is_darkness else None,
    )


def envelope(samples: npt.NDArray[np.float32], sample_rate: int, num_frames: int, fps: float) -> Series:
    """Return the loudness `[num_frames]` at the middle of each frame, compressed like hearing, 0 in silence.

    samples: mono, -1..1.
    """
    return _envelope_of_energy(_energy(samples), sample_rate, num_frames, fps, delay=0.0)


def _energy(samples: npt.NDArray[np.float32]) -> Series:
    """Return the energy `[n + 1]` of the samples before each sample."""
    energy = np.zeros(len(samples) + 1)  # the only copy in double precision: 128 KB for each second of sound
    np.multiply(samples, samples, out=energy[1:], dtype=np.float64)
    return np.cumsum(energy, out=energy)


def _envelope_of_energy(energy: Series, sample_rate: int, num_frames: int, fps: float, delay: float) -> Series:
    """Return the envelope; the sound is moved later by `delay` seconds."""
    num_samples, half = len(energy) - 1, int(sample_rate / fps * _WINDOW_FRAMES / 2)
    middle = (((np.arange(num_frames) + 0.5) / fps - delay) * sample_rate).astype(int)
    first, last = np.clip(middle - half, 0, num_samples), np.clip(middle + half, 0, num_samples)
    rms = np.sqrt((energy[last] - energy[first]) / np.maximum(last - first, 1))
    loudest = float(np.sqrt(np.max(np.diff(energy[:: max(1, half)]), initial=0.0) / max(1, half)))
    return np.asarray(np.log1p(rms / (_FLOOR * loudest + 1e-9)))


def compare(opening: Series, samples: npt.NDArray[np.float32], sample_rate: int, fps: float) -> LipSync | None:
    """Return lag and correlation of mouth and speech, or None if one of them does not vary (still mouth, silence).

    opening: opening or darkness of the mouth `[n]` per frame; frames without a face are NaN and left out.
    """
    known = np.isfinite(opening)
    if known.sum() < 2 * fps or np.std(opening[known]) < 1e-6 or not np.any(samples):
        return None
    lag, correlation = _best(opening, known, samples, sample_rate, fps)
    others = [_best(opening, known, other, sample_rate, fps)[1] for other in _other_speech(samples)]
    return LipSync(round(lag - _CALIBRATION_SECONDS, 3), correlation, float(np.mean(others)))


def _best(
    opening: Series, known: npt.NDArray[np.bool_], samples: npt.NDArray[np.float32], sample_rate: int, fps: float
) -> tuple[float, float]:
    lags = np.arange(-_MAX_LAG_SECONDS, _MAX_LAG_SECONDS + _STEP_SECONDS / 2, _STEP_SECONDS)
    mouth, energy = _standardised(opening[known]), _energy(samples)
    envelopes = (_envelope_of_energy(energy, sample_rate, len(opening), fps, float(lag)) for lag in lags)
    correlations = [float(np.mean(mouth * _standardised(loudness[known]))) for loudness in envelopes]
    best = int(np.argmax(correlations))
    return float(lags[best]), correlations[best]


def _other_speech(samples: npt.NDArray[np.float32]) -> Iterator[npt.NDArray[np.float32]]:
    """Yield other speech with the same voice and loudness: reversed, and rotated by thirds."""
    third = len(samples) // 3
    backwards = samples[::-1]
    yield backwards
    yield np.roll(backwards, third)
    yield np.roll(samples, third)
    yield np.roll(samples, -third)


def _standardised(values: Series) -> Series:
    return np.asarray((values - values.mean()) / (values.std() + 1e-9))


def _in_silence(audible: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Return the frames of silence, without those next to speech, in which the mouth still opens or closes."""
    padded = np.pad(audible, _BESIDE_SPEECH_FRAMES, mode="edge")
    return np.asarray(~np.lib.stride_tricks.sliding_window_view(padded, 2 * _BESIDE_SPEECH_FRAMES + 1).any(axis=1))


def _range(values: Series, *, at_least: int = 4) -> float | None:
    known = values[np.isfinite(values)]
    return float(np.percentile(known, 95) - np.percentile(known, 5)) if len(known) >= at_least else None
