"""Overlapping windows over a long sound, and how their results are joined.

The encoder's attention looks at all it is given, so that a window's states differ a little from those of the whole,
most near the ends of the window. There they do not count; further in they are faded over into those of the next window.

Times are in states, 50 per second.
"""

from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor

from s2v_tasks.engine.audio_features import num_states_at_50

# What one pass takes: up to this length the result is exactly that of the whole sound.
WINDOW_STATES = 3000
_MIN_OVERLAP_STATES = 500
# At each inner end; more than the 64 states that the positional convolution reaches.
_UNUSED_STATES = 150

# A state is made from this many samples, the next one from as many, so many further on.
_SAMPLES_PER_STATE, _SAMPLES_BETWEEN_STATES = 400, 320


@dataclass(frozen=True)
class Window:
    """States `start` to `end`, of `num_states` that the whole sound has."""

    start: int
    end: int
    num_states: int

    @property
    def samples(self) -> slice:
        """Return the samples that these states, and no others, are made from."""
        first = self.start * _SAMPLES_BETWEEN_STATES
        return slice(first, first + (self.end - self.start - 1) * _SAMPLES_BETWEEN_STATES + _SAMPLES_PER_STATE)

    def weights(self) -> Tensor:
        """Return the weight of each state of the window, float32 `[end - start]`, relative to other windows."""
        states = torch.arange(self.start, self.end)
        distances = torch.full((len(states),), WINDOW_STATES)
        if self.start > 0:
            distances = torch.minimum(distances, states - self.start)
        if self.end < self.num_states:
            distances = torch.minimum(distances, self.end - 1 - states)
        return (distances - _UNUSED_STATES).clamp(0, _MIN_OVERLAP_STATES - 2 * _UNUSED_STATES).float()


def windows_over(num_samples: int) -> list[Window]:
    """Return windows of equal length, evenly spread over the states of a sound; one window up to WINDOW_STATES."""
    num_states = num_states_at_50(num_samples)
    if num_states <= WINDOW_STATES:
        return [Window(0, num_states, num_states)]
    last_start = num_states - WINDOW_STATES
    num_steps = ceil(last_start / (WINDOW_STATES - _MIN_OVERLAP_STATES))
    starts = (last_start * step // num_steps for step in range(num_steps + 1))
    return [Window(start, start + WINDOW_STATES, num_states) for start in starts]


class JoinedStates:
    """The states of a sound, put together from those of its windows."""

    def __init__(self) -> None:
        self._sum_SNC: Tensor | None = None
        self._weights_N = torch.empty(0)

    def add(self, window: Window, states_SNC: Tensor) -> None:
        """Take the states of a window, `[S, end - start, C]`."""
        if self._sum_SNC is None:
            self._sum_SNC = states_SNC.new_zeros(states_SNC.shape[0], window.num_states, states_SNC.shape[2])
            self._weights_N = states_SNC.new_zeros(window.num_states)
        weights_N = window.weights().to(states_SNC.device)
        self._sum_SNC[:, window.start : window.end] += states_SNC * weights_N[:, None]
        self._weights_N[window.start : window.end] += weights_N

    def result(self) -> Tensor:
        """Return the joined states, `[S, num_states, C]`."""
        if self._sum_SNC is None:
            raise ValueError("no window was added")
        return self._sum_SNC.div_(self._weights_N[:, None])
