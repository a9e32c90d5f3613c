"""Pauses of a speech, detected by its loudness: pure functions over mono samples at 16 kHz.

The threshold depends on the recording: on its loud parts (speech) and its quietest parts (the room).
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from s2v_tasks.schemas.plan import FPS

SAMPLE_RATE = 16_000
SAMPLES_PER_FRAME = SAMPLE_RATE // FPS
SHORTEST_PAUSE_SECONDS = 0.2  # the closure of a "p" or "t" is quiet for up to 0.15 s

_HOP = SAMPLE_RATE // 100  # 10 ms: the resolution of a pause
_MEDIAN_HOPS = 5  # a click of 20 ms does not end a pause
_QUIETEST_DB = -120.0
_LOUD_PERCENTILE, _ROOM_PERCENTILE = 95, 1
# Quiet is 30 dB below speech; in a noisy room, what is in the lowest fifth between room and speech.
_BELOW_SPEECH_DB = 30.0
_SHARE_ABOVE_ROOM = 0.2
_LEAST_RANGE_DB = 6.0  # less between loud and quiet is music, a tone or silence: nobody pauses there

Samples = npt.NDArray[np.float32]
Levels = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Pause:
    """Samples [start_sample, end_sample) in which nobody speaks."""

    start_sample: int
    end_sample: int

    @property
    def seconds(self) -> float:
        return (self.end_sample - self.start_sample) / SAMPLE_RATE


def find_pauses(samples: Samples) -> list[Pause]:
    """Every pause of at least 0.2 s in `samples` `[n]`, in order, to within 10 ms."""
    if not samples.size:
        return []
    levels = _without_clicks(_levels_db(_power(samples, _HOP)))
    room, speech = np.percentile(levels, [_ROOM_PERCENTILE, _LOUD_PERCENTILE])
    if speech - room < _LEAST_RANGE_DB:
        return []
    threshold = max(speech - _BELOW_SPEECH_DB, room + _SHARE_ABOVE_ROOM * (speech - room))
    edges = np.flatnonzero(np.diff(np.concatenate([[False], levels < threshold, [False]]).astype(np.int8)))
    runs = [Pause(int(start) * _HOP, min(int(end) * _HOP, len(samples))) for start, end in edges.reshape(-1, 2)]
    return [pause for pause in runs if pause.seconds >= SHORTEST_PAUSE_SECONDS]


def boundary_levels(samples: Samples, num_frames: int) -> Levels:
    """Loudness in dB at each boundary between video frames, 0..`num_frames`: of the frames on both sides of it."""
    power = _power(samples, SAMPLES_PER_FRAME)[:num_frames]
    power = np.pad(power, (0, num_frames - len(power)))
    return _levels_db((np.pad(power, (1, 0)) + np.pad(power, (0, 1))) / 2)


def _power(samples: Samples, window: int) -> Levels:
    """Mean square of each whole or begun window of so many samples."""
    padded = np.pad(samples, (0, -len(samples) % window))
    power: Levels = np.square(padded.reshape(-1, window), dtype=np.float64).mean(axis=1)
    return power


def _without_clicks(levels: Levels) -> Levels:
    """The median around each level: unlike a mean it keeps the edges of a pause where they are."""
    padded = np.pad(levels, _MEDIAN_HOPS // 2, mode="edge")
    medians: Levels = np.median(np.lib.stride_tricks.sliding_window_view(padded, _MEDIAN_HOPS), axis=1)
    return medians


def _levels_db(power: Levels) -> Levels:
    return 10 * np.log10(np.maximum(power, 10 ** (_QUIETEST_DB / 10)))
