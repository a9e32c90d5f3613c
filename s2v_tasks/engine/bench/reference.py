"""What the reference does in a step (spec c.6, c.7, f.2), written plainly, to be measured beside the engine.

Legend: L all tokens, D model width, H heads, d head width, c = d/2.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from s2v_tasks.engine.models import attention, blocks, layers


@contextmanager
def plain_formulas() -> Iterator[None]:
    """Norms, modulation and gates operation by operation, rotation in complex128, torch's own matrix products."""
    with ExitStack() as stack:
        for owner, name, replacement in (
            (layers, "linear", F.linear),
            (layers.RMSNorm, "forward", _rms_norm),
            (blocks.Block, "_modulate", _modulate),
            (blocks, "_add_gated", _add_gated),
            (attention, "rotate", _rotate),
        ):
            stack.enter_context(patch.object(owner, name, replacement))
        yield


def _rms_norm(norm: layers.RMSNorm, x: Tensor) -> Tensor:
    wide = x.float()
    return (wide * torch.rsqrt(wide.pow(2).mean(dim=-1, keepdim=True) + norm.eps)).type_as(x) * norm.weight


def _modulate(block: blocks.Block, x_BLD: Tensor, shift_2D: Tensor, scale_2D: Tensor, num_video: int) -> Tensor:
    y_BLD = F.layer_norm(x_BLD.float(), x_BLD.shape[-1:], eps=block.eps)
    segments = y_BLD[:, :num_video], y_BLD[:, num_video:]
    return torch.cat([y * (1 + scale_2D[i]) + shift_2D[i] for i, y in enumerate(segments)], dim=1)


def _add_gated(x_BLD: Tensor, y_BLD: Tensor, gate_2D: Tensor, num_video: int) -> Tensor:
    segments = y_BLD[:, :num_video], y_BLD[:, num_video:]
    return x_BLD + torch.cat([y * gate_2D[i] for i, y in enumerate(segments)], dim=1)


def _rotate(x_BLHd: Tensor, rope_Lc2: Tensor) -> Tensor:
    pairs = torch.view_as_complex(rearrange(x_BLHd.double(), "b l h (c pair) -> b l h c pair", pair=2))
    table_LHc = torch.view_as_complex(rope_Lc2.double())[:, None].repeat(1, x_BLHd.shape[2], 1)
    return torch.view_as_real(pairs * table_LHc).flatten(-2).float()
