"""Division of the frames of a video into clips (ADR 3). Integers and fractions only, never floats."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby, pairwise

from s2v_tasks.errors import PermanentError
from s2v_tasks.schemas.plan import FPS, SpeechFacts

FRAMES_PER_LATENT = 4  # the VAE turns four frames into one latent, so a clip is a multiple of it
MIN_INFER_FRAMES = 16


def frames_of_speech(speech: SpeechFacts) -> int:
    """Return the least number of frames at 16 fps that covers the speech; PermanentError if it is empty."""
    if speech.num_samples <= 0:
        raise PermanentError("The speech has 0 samples: expected at least one; check that the file holds sound.")
    return math.ceil(FPS * speech.duration_seconds)


def clips_needed(num_frames: int, infer_frames: int) -> int:
    """Return the least number of clips of at most `infer_frames` that covers `num_frames`."""
    return -(-_rounded_up(num_frames) // infer_frames)


def split(num_frames: int, infer_frames: int, num_clip: int | None = None) -> list[int]:
    """Return the frames that each clip renders to deliver `num_frames` with clips of `infer_frames`.

    All clips are full except the last, which is as short as possible. A last clip under half of `infer_frames` (or
    under the minimum) shares its frames evenly with the previous clip, and with more clips if needed to reach the
    minimum. Fewer clips than needed (`num_clip`) make a preview of full clips; more are not used.

    Every clip is a multiple of 4 in 16..`infer_frames`. Fewer than 4 frames are rendered beyond the
    video, unless 16 frames for each clip are already more. The arguments are legal values of a request and at least
    one frame.
    """
    needed = clips_needed(num_frames, infer_frames)
    if num_clip is not None and num_clip < needed:
        return [infer_frames] * num_clip
    rendered = max(_rounded_up(num_frames), MIN_INFER_FRAMES * needed)
    last = rendered - infer_frames * (needed - 1)
    if needed == 1 or last >= max(MIN_INFER_FRAMES, infer_frames / 2):
        return [infer_frames] * (needed - 1) + [last]
    sharing, frames = 2, last + infer_frames
    while frames < MIN_INFER_FRAMES * sharing:
        sharing, frames = sharing + 1, frames + infer_frames
    return [infer_frames] * (needed - sharing) + _evenly(frames, sharing)


@dataclass(frozen=True)
class Slot:
    """The place of a clip: renders `infer_frames` frames, of which [start_frame, end_frame) are delivered."""

    chain_index: int
    infer_frames: int
    start_frame: int
    end_frame: int
    starts_chain: bool
    ends_chain: bool
    fade_in_frames: int
    fade_out_frames: int


def lay_out(bounds: list[int], infer_frames: int, num_clip: int | None, fade_frames: int) -> list[Slot]:
    """Return the clips of a video whose chain k delivers the frames `bounds[k]` to `bounds[k + 1]`.

    Each chain is divided by `split`; every chain except the last has `fade_frames` more to fade out. `num_clip` limits
    the number of clips of all chains; later clips are left out.
    """
    slots: list[Slot] = []
    for chain_index, (start_frame, end_frame) in enumerate(pairwise(bounds)):
        left = None if num_clip is None else num_clip - len(slots)
        if left == 0:
            break
        ends_video = end_frame == bounds[-1]
        beyond = 0 if ends_video else fade_frames
        frames = split(end_frame - start_frame + beyond, infer_frames, left)
        ends_plan = ends_video or len(frames) == left
        last = len(frames) - 1
        for position, (start, end) in enumerate(frame_ranges(frames, start_frame, end_frame)):
            slots.append(
                Slot(
                    chain_index=chain_index,
                    infer_frames=frames[position],
                    start_frame=start,
                    end_frame=end,
                    starts_chain=position == 0,
                    ends_chain=position == last,
                    fade_in_frames=fade_frames if position == 0 < chain_index else 0,
                    fade_out_frames=fade_frames if position == last and not ends_plan else 0,
                )
            )
    return slots


def clips_of_processes(chain_indices: Sequence[int], clips_per_pod: int) -> list[range]:
    """Return the clips of each process: up to `clips_per_pod` consecutive clips of one chain.

    `chain_indices` has the chain of each clip.
    """
    found: list[range] = []
    for _, chain in groupby(range(len(chain_indices)), key=chain_indices.__getitem__):
        clips = list(chain)
        found += [
            range(first, min(first + clips_per_pod, clips[-1] + 1))
            for first in range(clips[0], clips[-1] + 1, clips_per_pod)
        ]
    return found


def frame_ranges(infer_frames: list[int], start_frame: int, end_frame: int) -> Iterator[tuple[int, int]]:
    """Yield [start_frame, end_frame) of each clip of a chain: contiguous, the last trimmed to end with the chain."""
    for start, end in pairwise(accumulate(infer_frames, initial=start_frame)):
        yield start, min(end, end_frame)


def _rounded_up(num_frames: int) -> int:
    return -(-num_frames // FRAMES_PER_LATENT) * FRAMES_PER_LATENT


def _evenly(frames: int, parts: int) -> list[int]:
    """Divide `frames` into `parts` multiples of 4 that differ by at most 4, the larger ones first."""
    quotient, rest = divmod(frames // FRAMES_PER_LATENT, parts)
    return [FRAMES_PER_LATENT * (quotient + (part < rest)) for part in range(parts)]
