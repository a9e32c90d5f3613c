"""Weights in float8 with scales and markers, as single files for node editors contain them."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

_WIDE = re.compile(r"blocks\.\d+\.(self_attn|cross_attn|ffn)\.[qkvo02]\.weight")
_LARGEST = 448  # of float8_e4m3fn


def in_float8(official: Mapping[str, Tensor], suffix: str, *, per_row: bool) -> dict[str, Tensor]:
    """Return `official` with the large matrices of the blocks in float8, each with its scale under `suffix`."""
    tensors = dict(official)
    for key in filter(_WIDE.fullmatch, official):
        value = official[key].float()
        scale = (
            value.abs().amax(dim=1 if per_row else (0, 1)).div(_LARGEST).clamp(min=1e-12)
        )  # of a weight of zeros, too
        tensors[key] = (value / (scale[:, None] if per_row else scale)).to(torch.float8_e4m3fn)
        tensors[key.removesuffix(".weight") + suffix] = scale
        tensors[key.removesuffix(".weight") + ".comfy_quant"] = torch.zeros(4, dtype=torch.uint8)
    tensors["scaled_fp8"] = torch.zeros(2, dtype=torch.float8_e4m3fn)
    return tensors
