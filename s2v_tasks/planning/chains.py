"""Cuts of a speech into chains (ADR 7), at its pauses: pure functions over mono samples at 16 kHz.

Pauses are detected by loudness. The threshold depends on the recording: on its loud parts (speech) and its quietest
parts (the room). The cuts have the lowest cost of all that keep every chain between the minimum and the maximum length.
A pause at the end of a sentence has a negative cost. A shorter pause has a positive cost, so it is used only if a chain
would be too long. A position with speech costs more than all pauses together; the quietest position costs least.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from s2v_tasks.schemas.plan import FPS, Cut

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
_LEAST_RANGE_DB = 6.0  # music, tones and silence have a smaller range and no pauses
Samples = npt.NDArray[np.float32]
Levels = npt.NDArray[np.float64]
SENTENCE_PAUSE_SECONDS = 0.5
# A chain begins with a held picture of this length (ADR 4), which should have no speech.
SETTLING_SAMPLES = SAMPLE_RATE // 4
_LONGEST_COUNTED_SECONDS = 2.0
_BONUS_PER_SECOND = 0.1
_COST_OF_SHORT_PAUSE = 2.0
_COST_PER_FRAME_OFF = 0.01
_COST_OF_SPEECH = 1e6


@dataclass(frozen=True)
class Pause:
    """Samples [start_sample, end_sample) without speech."""

    start_sample: int
    end_sample: int

    @property
    def seconds(self) -> float:
        return (self.end_sample - self.start_sample) / SAMPLE_RATE


def find_pauses(samples: Samples) -> list[Pause]:
    """Return every pause of at least 0.2 s in `samples` `[n]`, in order, with a resolution of 10 ms."""
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
    """Return the loudness in dB at each boundary of video frames, 0..`num_frames`: the mean of both frames."""
    power = _power(samples, SAMPLES_PER_FRAME)[:num_frames]
    power = np.pad(power, (0, num_frames - len(power)))
    return _levels_db((np.pad(power, (1, 0)) + np.pad(power, (0, 1))) / 2)


def _power(samples: Samples, window: int) -> Levels:
    """Return the mean square of each window of this many samples; the last window may be shorter."""
    padded = np.pad(samples, (0, -len(samples) % window))
    power: Levels = np.square(padded.reshape(-1, window), dtype=np.float64).mean(axis=1)
    return power


def _without_clicks(levels: Levels) -> Levels:
    """Return the median around each level, which keeps the edges of pauses, unlike a mean."""
    padded = np.pad(levels, _MEDIAN_HOPS // 2, mode="edge")
    medians: Levels = np.median(np.lib.stride_tricks.sliding_window_view(padded, _MEDIAN_HOPS), axis=1)
    return medians


def _levels_db(power: Levels) -> Levels:
    return 10 * np.log10(np.maximum(power, 10 ** (_QUIETEST_DB / 10)))


def find_cuts(samples: Samples, num_frames: int, *, shortest_seconds: float, longest_seconds: float) -> list[Cut]:
    """Return the cuts of a video of `num_frames` frames with the speech `samples` `[n]` at 16 kHz, in order.

    Every chain lasts from `shortest_seconds` to `longest_seconds` (at least twice the shortest); a video that is
    shorter than the shortest is one chain.
    """
    costs = boundary_levels(samples, num_frames) + _COST_OF_SPEECH
    paused: dict[int, float] = {}
    for pause in find_pauses(samples):
        for frame, cost in _pause_costs(pause):
            if frame < num_frames:
                costs[frame], paused[frame] = cost, pause.seconds
    frames = _cheapest(costs, int(shortest_seconds * FPS), int(longest_seconds * FPS))
    return [Cut(frame=frame, pause_seconds=paused.get(frame)) for frame in frames]


def _pause_costs(pause: Pause) -> Iterable[tuple[int, float]]:
    """Yield (frame boundary, cost of a cut there) for each boundary inside the pause.

    The best boundary is the last one that leaves time for the held picture of the new chain, else the first.
    """
    first = -(-pause.start_sample // SAMPLES_PER_FRAME)
    last = pause.end_sample // SAMPLES_PER_FRAME
    best = max(first, (pause.end_sample - SETTLING_SAMPLES) // SAMPLES_PER_FRAME)
    counted = min(pause.seconds, _LONGEST_COUNTED_SECONDS)
    cost = -1 - counted * _BONUS_PER_SECOND
    if counted < SENTENCE_PAUSE_SECONDS:
        cost = _COST_OF_SHORT_PAUSE - counted
    for frame in range(max(first, 1), last + 1):
        yield frame, cost + _COST_PER_FRAME_OFF * abs(frame - best)


def _cheapest(costs: Levels, shortest: int, longest: int) -> list[int]:
    """Return the boundaries that divide 0..len(costs) - 1 into chains of legal length at the least sum of costs."""
    num_frames = len(costs) - 1
    total = np.full(num_frames + 1, np.inf)
    previous = np.zeros(num_frames + 1, dtype=int)
    total[0] = 0
    reachable: deque[int] = deque()  # ends of chains that the next one may follow, the cheapest first
    for frame in range(shortest, num_frames + 1):
        while reachable and total[reachable[-1]] >= total[frame - shortest]:
            reachable.pop()
        reachable.append(frame - shortest)
        if reachable[0] < frame - longest:
            reachable.popleft()
        previous[frame] = reachable[0]
        total[frame] = total[reachable[0]] + costs[frame]
    cuts = []
    frame = previous[num_frames]
    while frame > 0:
        cuts.append(int(frame))
        frame = previous[frame]
    return cuts[::-1]
