"""Inputs of single clips: chains of one clip, without a pose video."""

from collections.abc import Mapping

import torch
from torch import Tensor

from s2v_tasks.engine.clip import ClipInputs


def clip_of(conditions: Mapping[str, Tensor], seed: int, *, keep_motion_frames: int | None = None) -> ClipInputs:
    """Return a clip of all frames of `conditions`, as `encode_conditions` makes them."""
    return ClipInputs(
        **{name: conditions[name] for name in ("reference_u8", "context", "context_null", "audio")},
        pose=None,
        seed=seed,
        motion=None,
        start_from_ref=False,
        keep_motion_frames=keep_motion_frames,
    )


def random_clip(seed: int, *, keep_motion_frames: int | None = None) -> ClipInputs:
    """Return a clip of 16 frames of 64x64 pixels for the tiny snapshot, with conditions drawn from a seed."""
    generator = torch.Generator().manual_seed(3)
    conditions = {
        "reference_u8": torch.randint(0, 256, (64, 64, 3), generator=generator).to(torch.uint8),
        "context": torch.randn(5, 32, generator=generator),
        "context_null": torch.randn(3, 32, generator=generator),
        "audio": torch.randn(16, 25, 32, generator=generator),
    }
    return clip_of(conditions, seed, keep_motion_frames=keep_motion_frames)
