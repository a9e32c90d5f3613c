"""How the frames of a video are divided into clips (ADR 3)."""

from collections.abc import Iterator
from itertools import accumulate, pairwise

FRAMES_PER_LATENT = 4  # the VAE turns four frames into one latent, so a clip is a multiple of it
MIN_INFER_FRAMES = 16
MAX_INFER_FRAMES = 120


def clips_needed(num_frames: int, infer_frames: int) -> int:
    """The fewest clips of at most `infer_frames` that cover `num_frames`."""
    return -(-_rounded_up(num_frames) // infer_frames)


def split(num_frames: int, infer_frames: int, num_clip: int | None = None) -> list[int]:
    """Frames that each clip renders, to deliver `num_frames` with clips of `infer_frames`.

    All clips are full but the last, which is as short as it can be; a last clip under half of `infer_frames` (or
    under the legal minimum) shares its frames evenly with the clip before it, and with as many more as it takes for
    each to reach the minimum. Fewer clips than needed (`num_clip`) make a preview of full clips; more are not used.

    Every clip is a multiple of 4 in 16..`infer_frames`. Fewer than 4 frames are rendered in vain, unless 16 frames for
    each clip are already more than that. The arguments are legal values of a request and at least one frame.
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


def frame_ranges(infer_frames: list[int], num_frames: int) -> Iterator[tuple[int, int]]:
    """[start_frame, end_frame) of each clip: contiguous from 0, the last trimmed to end at `num_frames`."""
    for start_frame, end_frame in pairwise(accumulate(infer_frames, initial=0)):
        yield start_frame, min(end_frame, num_frames)


def _rounded_up(num_frames: int) -> int:
    return -(-num_frames // FRAMES_PER_LATENT) * FRAMES_PER_LATENT


def _evenly(frames: int, parts: int) -> list[int]:
    """`frames` as `parts` multiples of 4 that differ by at most 4, the larger ones first."""
    quotient, rest = divmod(frames // FRAMES_PER_LATENT, parts)
    return [FRAMES_PER_LATENT * (quotient + (part < rest)) for part in range(parts)]
