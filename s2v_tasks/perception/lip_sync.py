"""Lip sync: opening or darkness of the mouth against the loudness of the speech.

This is not SyncNet and gives no LSE scores. It measures if and when the mouth opens with the speech. It does not check
the mouth shape of each vowel.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Series = npt.NDArray[np.float64]

_MAX_LAG_SECONDS = 0.5
_STEP_SECONDS = 0.01
# The envelope is the root mean square in a window of this many frames around the middle of a frame.
_WINDOW_FRAMES = 1.5
# Between the opening of a mouth and the loudness that it lets out: vowels are loudest after the mouth has opened.
# Measured with drawn faces whose opening follows phoneme times (tests/perception): see docs/perception.md.
_CALIBRATION_SECONDS = 0.01
# Loudness of 5 % of the loudest moment and below counts as no speech.
_FLOOR = 0.05


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


def envelope(
    samples: npt.NDArray[np.float32], sample_rate: int, num_frames: int, fps: float, delay: float = 0.0
) -> Series:
    """Return the loudness `[num_frames]` at the middle of each frame, compressed like hearing, 0 in silence.

    samples: mono, -1..1. delay: seconds by which the sound is moved later.
    """
    return _envelope_of_energy(_energy(samples), sample_rate, num_frames, fps, delay)


def _energy(samples: npt.NDArray[np.float32]) -> Series:
    """Return the energy `[n + 1]` of the samples before each sample."""
    energy = np.zeros(len(samples) + 1)  # the only copy in double precision: 128 KB for each second of sound
    np.multiply(samples, samples, out=energy[1:], dtype=np.float64)
    return np.cumsum(energy, out=energy)


def _envelope_of_energy(energy: Series, sample_rate: int, num_frames: int, fps: float, delay: float) -> Series:
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
