"""The motion history as tokens: the older the frames, the coarser the patches (spec c.4).

Legend: B batch (1), C latent channels, F latent frames, h w latent height and width, M motion tokens, D model width.
"""

import torch
from torch import Tensor, nn

from s2v_tasks.engine.models.layers import PatchConv
from s2v_tasks.engine.models.rope import Grid, motion_grids

_NEWEST, _MIDDLE, _OLDEST = 1, 2, 16
MOTION_LATENTS = _NEWEST + _MIDDLE + _OLDEST


class FramePacker(nn.Module):
    """Pack up to 19 latent frames into tokens ordered newest 1, the 2 before, the 16 before."""

    def __init__(self, in_dim: int, dim: int, drop_mode: str) -> None:
        super().__init__()
        self.proj = PatchConv(in_dim, dim, (1, 2, 2))
        self.proj_2x = PatchConv(in_dim, dim, (2, 4, 4))
        self.proj_4x = PatchConv(in_dim, dim, (4, 8, 8))
        self.drop_mode = drop_mode

    def forward(self, motion_BCFhw: Tensor, last_motion: int) -> tuple[Tensor, list[Grid]]:
        """Return tokens `[1, M, D]` and their positions.

        `last_motion` says how much of the newest history takes part: 2 all of it, 1 without the newest frame, 0 without
        the newest three; "padd" zeroes what is left out, "drop" removes its tokens.
        """
        history = motion_BCFhw[:, :, -MOTION_LATENTS:]
        missing = MOTION_LATENTS - history.shape[2]
        history = nn.functional.pad(history, (0, 0, 0, 0, missing, 0))
        left_out = (_NEWEST + _MIDDLE, _NEWEST, 0)[last_motion]
        if left_out and self.drop_mode == "padd":
            history = nn.functional.pad(history[:, :, :-left_out], (0, 0, 0, 0, 0, left_out))

        oldest, middle, newest = torch.split(history, [_OLDEST, _MIDDLE, _NEWEST], dim=2)
        tokens = [self.proj(newest), self.proj_2x(middle), self.proj_4x(oldest)]
        grids = list(motion_grids(*history.shape[-2:]))
        first = 2 - last_motion if self.drop_mode == "drop" else 0
        return torch.cat(tokens[first:], dim=1), grids[first:]
