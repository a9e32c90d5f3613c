"""Check that the formula of the plan counts the operations of the transformer."""

from math import prod
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from s2v_tasks.engine.models.config import S2VConfig
from s2v_tasks.planning.estimate import ClipShape, clip_tokens, forward_flops
from s2v_tasks.schemas.model_card import ModelCard
from s2v_tasks.verification.bench.step import random_transformer

DIMENSIONS = {
    "dim": 192, "ffn_dim": 512, "num_layers": 4, "text_dim": 64, "text_len": 32, "audio_inject_layers": (0, 2),
}  # fmt: skip
CONFIG = S2VConfig(num_heads=4, freq_dim=16, audio_dim=8, **DIMENSIONS)  # type: ignore[arg-type]
CARD = ModelCard(
    name="counted",
    transformer_parameters=1,
    vae_parameters=1,
    vae_base_dim=8,
    smallest_trained_area=0,
    **DIMENSIONS,  # type: ignore[arg-type]
)


@pytest.mark.parametrize("with_motion", [False, True])
def test_the_formula_equals_the_counter(with_motion: bool) -> None:
    """Operations of a step, and its constant ones, equal those that torch counts (0.03 % off, with two branches 0.2 %).

    The prompt has the largest length, because the formula counts its padding, which is not computed in fp32.
    """
    shape = ClipShape(192, 128, 32, with_motion=with_motion, starts_chain=not with_motion, ends_chain=False)
    transformer = random_transformer(CONFIG, torch.device("cpu"), torch.float32)
    motion = torch.zeros(1, 16, 19, 16, 24) if with_motion else None
    prepared_tokens = transformer.prepare_clip_tokens(8, torch.zeros(1, 16, 1, 16, 24), motion, None)
    assert prepared_tokens.end == clip_tokens(shape)
    # The counter knows neither fused attention on a CPU nor oneDNN.
    onednn = {torch.ops.mkldnn._linear_pointwise: _flops_of_linear}
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False, custom_mapping=onednn) as prepared:
            text = transformer.prepare_text(torch.zeros(32, 64))
        conditioning = transformer.prepare_conditioning(torch.zeros(32, 64), torch.zeros(32, 25, 8))
        stepped = [FlopCounterMode(display=False, custom_mapping=onednn) for _ in range(2)]
        for branches, counter in enumerate(stepped, start=1):
            with counter:
                transformer(
                    torch.zeros(1, 16, 8, 16, 24), torch.tensor([500]), prepared_tokens, [conditioning] * branches
                )
    flops = forward_flops(shape, CARD)
    assert len(text) == CONFIG.num_layers
    for branches, counter in enumerate(stepped, start=1):
        assert counter.get_total_flops() == pytest.approx(
            flops.per_step(branches), rel=0.0003 if branches == 1 else 0.002
        )
    audio = 2 * 4 * (8 * 5 + 8) * 192**2
    assert prepared.get_total_flops() == pytest.approx(flops.constant - audio, rel=0.01)


def _flops_of_linear(x: torch.Size, weight: torch.Size, *_: Any, **__: Any) -> int:
    return 2 * prod(x) * weight[0]
