"""A pipeline of small dimensions, whose codec counts the frames that it encodes, and inputs of its clips."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from s2v_tasks.engine.clip import ClipInputs, Codec
from s2v_tasks.engine.images import Compat
from s2v_tasks.engine.models.config import S2VConfig
from s2v_tasks.engine.models.transformer import S2VTransformer
from s2v_tasks.engine.pipeline import S2VPipeline
from s2v_tasks.verification.parity.golden import Golden
from s2v_tasks.verification.parity.loops import LinearCodec
from tests.engine.clip_inputs import clip_of

SMALL = {
    "dim": 48, "ffn_dim": 64, "num_heads": 2, "num_layers": 2, "freq_dim": 16, "text_dim": 12, "text_len": 8,
    "audio_dim": 6, "audio_inject_layers": [1],
}  # fmt: skip
SIDE = 64


class CountingCodec(LinearCodec):
    """A linear codec in place of the VAE, which counts the encoded and decoded frames."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(5)
        encode = torch.randn(16, 768, generator=generator) / 20
        weights = {
            "vae_E": encode,
            "vae_be": torch.zeros(16),
            "vae_D": encode.T.contiguous(),
            "vae_bd": torch.zeros(768),
        }
        super().__init__(Golden("", weights, {}))
        self.encoded_frames: list[int] = []

    def encode(self, pixels_BCTHW: Tensor, /) -> Tensor:
        self.encoded_frames.append(pixels_BCTHW.shape[2])
        return super().encode(pixels_BCTHW)


def make_pipeline(
    vae: Codec | None = None, dtype: torch.dtype = torch.float32, compat: Compat = "corrected"
) -> S2VPipeline:
    torch.manual_seed(0)
    transformer = S2VTransformer(S2VConfig.from_json(SMALL)).requires_grad_(requires_grad=False)
    return S2VPipeline(transformer.to(dtype), vae or CountingCodec(), "cpu", dtype, compat=compat)


def inputs(num_frames: int = 16, **changes: Any) -> ClipInputs:
    generator = torch.Generator().manual_seed(7)
    picture = torch.randint(0, 256, (SIDE, SIDE, 3), generator=generator).to(torch.uint8)
    conditions = {
        "reference_u8": picture,
        "context": torch.randn(5, 12, generator=generator),
        "context_null": torch.randn(3, 12, generator=generator),
        "audio": torch.randn(num_frames, 25, 6, generator=generator),
    }
    return replace(clip_of(conditions, seed=42), **changes)
