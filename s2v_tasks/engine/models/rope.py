"""Rotary position embedding: one (time, row, column) triple per token (spec c.3).

Legend: L tokens, H heads, d head width, c = d/2 complex channels, B batch (1).
Positions are integers, computed exactly; angles are float64; only the finished table is rounded to fp32.
"""

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

REFERENCE_TIME = 30
_BASE = 10000.0
_CHUNK_TOKENS = 8192  # rotated at a time, so that the fp32 copy of bf16 queries or keys stays small


@dataclass(frozen=True)
class Grid:
    """A block of tokens, ordered time, row, column, by the positions of its axes."""

    times: tuple[int, ...]
    rows: tuple[int, ...]
    columns: tuple[int, ...]

    @property
    def num_tokens(self) -> int:
        """Return the tokens of the block."""
        return len(self.times) * len(self.rows) * len(self.columns)


def spread(count: int, extent: int) -> tuple[int, ...]:
    """Spread `count` positions over `0..extent-1`, both ends included, rounded down; a single one is at 0."""
    if count == 1:
        return (0,)
    return tuple(k * (extent - 1) // (count - 1) for k in range(count))


def video_grid(num_frames: int, rows: int, columns: int) -> Grid:
    """Return the patches of the clip itself."""
    return Grid(tuple(range(num_frames)), tuple(range(rows)), tuple(range(columns)))


def reference_grid(rows: int, columns: int) -> Grid:
    """Return the patches of the reference image: one frame at a time position after the longest clip."""
    return Grid((REFERENCE_TIME,), tuple(range(rows)), tuple(range(columns)))


def motion_grids(height: int, width: int) -> tuple[Grid, Grid, Grid]:
    """Return three grids of the motion history: the newest latent frame, the 2 before it, and the 16 before those.

    Older grids are coarser. `height` and `width` are those of the latents.
    """
    rows, columns = height // 2, width // 2
    newest = Grid((-1,), tuple(range(rows)), tuple(range(columns)))
    middle = Grid((-3,), spread(height // 4, rows), spread(width // 4, columns))
    oldest = Grid((-19, -14, -9, -4), spread(height // 8, rows), spread(width // 8, columns))
    return newest, middle, oldest


def rope_table(grids: list[Grid], head_dim: int) -> Tensor:
    """Return the rotations `exp(i * angle)` of all tokens of `grids` in order: `[L, c]`, complex128, on the CPU."""
    return torch.cat([_grid_table(grid, head_dim) for grid in grids])


def cos_sin(table_Lc: Tensor) -> Tensor:
    """Return a table in the form that `rotate` takes: cosine and sine, fp32 `[L, c, 2]`."""
    return torch.view_as_real(table_Lc).float()


def rotate(x_BLHd: Tensor, rope_Lc2: Tensor) -> Tensor:
    """Rotate adjacent channel pairs of every head by the token's table row, the same for all heads.

    Works in the memory of `x_BLHd`, unless it is compiled, and returns its dtype.

    The product is computed in fp32. The table was computed in float64, so the error is below the rounding of the
    product to fp32 or bf16, and complex128 copies of queries and keys are not needed.
    """
    if torch.compiler.is_compiling():
        # The compiler fuses real numbers only; run eagerly, the complex product is faster.
        (real, imag), (cos, sin) = _pairs(x_BLHd).unbind(-1), rope_Lc2[:, None].unbind(-1)
        rotated = torch.stack([real * cos - imag * sin, real * sin + imag * cos], dim=-1)
        return rotated.flatten(-2).to(x_BLHd.dtype)
    table_L1c = torch.view_as_complex(rope_Lc2)[:, None]
    for start in range(0, x_BLHd.shape[1], _CHUNK_TOKENS):
        part = slice(start, start + _CHUNK_TOKENS)
        pairs = _pairs(x_BLHd[:, part])
        torch.view_as_complex(pairs).mul_(table_L1c[part])
        if x_BLHd.dtype != torch.float32:
            x_BLHd[:, part] = pairs.flatten(-2)
    return x_BLHd


def _pairs(x_BLHd: Tensor) -> Tensor:
    """Return the channels in pairs, fp32: a view of `x_BLHd` if that is fp32, else a copy."""
    pairs: Tensor = rearrange(x_BLHd.float(), "b l h (c pair) -> b l h c pair", pair=2)
    return pairs


def _grid_table(grid: Grid, head_dim: int) -> Tensor:
    side = 2 * (head_dim // 6)
    bands = (head_dim - 2 * side, side, side)
    angles = [_angles(axis, band) for axis, band in zip((grid.times, grid.rows, grid.columns), bands, strict=True)]
    shape = (len(grid.times), len(grid.rows), len(grid.columns), -1)
    views = [
        axis_angles.reshape([-1 if i == axis else 1 for i in range(3)] + [axis_angles.shape[-1]]).expand(
            *shape[:3], axis_angles.shape[-1]
        )
        for axis, axis_angles in enumerate(angles)
    ]
    table_Lc = torch.cat(views, dim=-1).flatten(0, 2)
    return torch.polar(torch.ones_like(table_Lc), table_Lc)


def _angles(positions: tuple[int, ...], band: int) -> Tensor:
    """Return the angles `[len(positions), band / 2]` of a band of `band` real channels."""
    exponents = torch.arange(0, band, 2, dtype=torch.float64) / band
    return torch.outer(torch.tensor(positions, dtype=torch.float64), torch.pow(_BASE, -exponents))
