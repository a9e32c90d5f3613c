"""Inputs and results of the rendering of a clip.

Legend: B batch (1), C channels, F pixel frames, H W pixels, T latent frames, h = H/8, w = W/8.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from s2v_tasks.engine.denoising import DenoiseState
from s2v_tasks.engine.models.transformer import MOTION_FRAMES

_LATENT_CHANNELS = 16


class Codec(Protocol):
    """The VAE as the pipeline uses it; see `engine.encoders.vae.Vae`."""

    def encode(self, pixels_BCTHW: Tensor, /) -> Tensor:
        """Encode pixels `[1, 3, F, H, W]` to normalised latents `[1, 16, 1 + (F-1)//4, h, w]`."""
        ...

    def decode_pieces(self, latents_BCZhw: Tensor, num_frames: int, /) -> Iterator[Tensor]:
        """Decode normalised latents `[1, 16, T, h, w]` to the last `num_frames` of their 4T - 3 frames.

        The frames come a few at a time, as clamped pixels `[1, 3, n, H, W]`.
        """
        ...


@dataclass(frozen=True)
class Sampling:
    """Parameters of the denoising; the names are those of the request."""

    sample_steps: int
    sample_guide_scale: float
    sample_shift: float
    sample_solver: str
    guide_steps: tuple[int, int] | None = None  # [from, to): the steps with guidance; None: all

    @property
    def is_guided(self) -> bool:
        """Return True if any step has two branches, cond and uncond."""
        return self.sample_guide_scale > 1

    @property
    def is_partly_guided(self) -> bool:
        """Return True if some steps have two branches and others only cond."""
        return self.is_guided and self.guide_steps not in (None, (0, self.sample_steps))

    def is_guided_at(self, step: int) -> bool:
        """Return True if this step has two branches."""
        first, end = self.guide_steps or (0, self.sample_steps)
        return self.is_guided and first <= step < end


def _ignore(*_: object) -> None:
    return None


def _never() -> bool:
    return False


@dataclass(frozen=True)
class Callbacks:
    """Functions that a render calls; the defaults do nothing."""

    on_frames: Callable[[Tensor], None] = _ignore  # frames in order as they are decoded, u8 [n, H, W, 3] on the device
    on_step: Callable[[int, int], None] = _ignore  # solver steps done, and in all
    is_interrupted: Callable[[], bool] = _never  # called for each branch of a step and each decoded latent; True: stop
    on_state: Callable[[Callable[[], DenoiseState]], None] = _ignore  # after each step, with a function to copy it


@dataclass(frozen=True)
class MotionState:
    """The newest frames of a clip, which the next clip of the chain continues."""

    latents: Tensor  # [1, 16, 19, h, w], the newest 73 pixel frames encoded
    frames: Tensor  # [1, 3, n, H, W], as many of the newest pixel frames as a later clip needs


@dataclass(frozen=True)
class ClipInputs:
    """Inputs of one clip."""

    reference_u8: NDArray[np.uint8] | Tensor  # [H, W, 3], fitted
    context: Tensor  # [len, text_dim], the prompt
    context_null: Tensor  # [len, text_dim], the negative prompt
    audio: Tensor  # [F, 25, audio_dim], one row per frame of this clip
    pose: Tensor | None  # [1, 3, n, H, W] pixels of this clip, n <= F; None: no pose video
    seed: int
    motion: MotionState | None  # None: the first clip of its chain
    start_from_ref: bool
    keep_motion_frames: int | None  # `motion_frames_needed`; None: the last clip of its chain leaves no state


@dataclass(frozen=True)
class ClipOutput:
    """A rendered clip."""

    frames_u8: NDArray[np.uint8]  # [F, H, W, 3]
    motion: MotionState | None


@dataclass(frozen=True)
class ClipLatents:
    """Inputs of a clip, encoded by the VAE."""

    reference: Tensor  # [1, 16, 1, h, w]
    history: MotionState | None  # None: nothing precedes, the clip starts from noise alone
    pose: Tensor | None  # [1, 16, T, h, w]
    num_frames: int

    @property
    def noise_shape(self) -> tuple[int, int, int, int]:
        """Return the shape `[16, T, h, w]` of the latents that are denoised."""
        height, width = self.reference.shape[-2:]
        return (_LATENT_CHANNELS, self.num_frames // 4, height, width)


def motion_frames_needed(later_infer_frames: Sequence[int]) -> int | None:
    """Return the number of newest pixel frames in a clip's state, from the frames of each later clip of its chain.

    None if no clip follows. The next clip uses old frames only to fill its 73-frame history, and only if another clip
    needs that history.
    """
    if not later_infer_frames:
        return None
    if len(later_infer_frames) == 1:
        return 0
    return max(0, MOTION_FRAMES - later_infer_frames[0])
