"""Cuts of a speech into chains (ADR 7).

The cuts are the cheapest ones whose chains all keep the shortest and the longest length. A pause in which a sentence
ends is worth a cut; a shorter pause costs one, so it is used where the longest length asks for it; a place where
somebody speaks costs more than all pauses together, and the quietest one costs least.
"""

from collections import deque
from collections.abc import Iterable

import numpy as np

from s2v_tasks.planning.pauses import (
    SAMPLE_RATE,
    SAMPLES_PER_FRAME,
    Levels,
    Pause,
    Samples,
    boundary_levels,
    find_pauses,
)
from s2v_tasks.schemas.plan import FPS, Cut

SENTENCE_PAUSE_SECONDS = 0.5
# A chain opens with its first picture held for as long (ADR 4): nobody should speak yet.
SETTLING_SAMPLES = SAMPLE_RATE // 4

_LONGEST_COUNTED_SECONDS = 2.0
_BONUS_PER_SECOND = 0.1
_COST_OF_SHORT_PAUSE = 2.0
_COST_PER_FRAME_OFF = 0.01
_COST_OF_SPEECH = 1e6


def find_cuts(samples: Samples, num_frames: int, *, shortest_seconds: float, longest_seconds: float) -> list[Cut]:
    """Cuts of a video of `num_frames` frames whose speech is `samples` `[n]` at 16 kHz, in order.

    Every chain lasts from `shortest_seconds` to `longest_seconds` (at least twice the shortest); a video that is
    shorter than the shortest is one chain.
    """
    costs = boundary_levels(samples, num_frames) + _COST_OF_SPEECH
    paused: dict[int, float] = {}
    for pause in find_pauses(samples):
        for frame, cost in _pause_costs(pause):
            if frame < num_frames and cost < costs[frame]:
                costs[frame], paused[frame] = cost, pause.seconds
    frames = _cheapest(costs, int(shortest_seconds * FPS), int(longest_seconds * FPS))
    return [Cut(frame=frame, pause_seconds=paused.get(frame)) for frame in frames]


def _pause_costs(pause: Pause) -> Iterable[tuple[int, float]]:
    """(frame boundary, cost of a cut there) for each boundary inside the pause.

    The best one is the last that leaves the new chain time to settle, else the first.
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
    """The boundaries that divide 0..len(costs) - 1 into chains within the bounds (frames) at the least sum of costs."""
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
        total[frame] = total[reachable[0]] + (costs[frame] if frame < num_frames else 0)
    cuts = []
    frame = previous[num_frames]
    while frame > 0:
        cuts.append(int(frame))
        frame = previous[frame]
    return cuts[::-1]
