"""A transformer of 3 blocks with random weights, and its velocity for fixed inputs."""

import torch
from torch import Tensor, nn

from s2v_tasks.engine.acceleration.first_block_cache import FirstBlockCache
from s2v_tasks.engine.models.config import S2VConfig
from s2v_tasks.engine.models.transformer import S2VTransformer

SMALL = {
    "dim": 48, "ffn_dim": 64, "num_heads": 2, "num_layers": 3, "freq_dim": 16, "text_dim": 12, "text_len": 8,
    "audio_dim": 6, "audio_inject_layers": [0, 2],
}  # fmt: skip


def random_transformer() -> S2VTransformer:
    torch.manual_seed(0)
    transformer = S2VTransformer(S2VConfig.from_json(SMALL)).requires_grad_(requires_grad=False)
    for parameter in transformer.parameters():
        nn.init.normal_(parameter, std=0.15)
    return transformer


def velocities(transformer: S2VTransformer, memory: FirstBlockCache | None, timesteps: list[int]) -> list[Tensor]:
    """Return the velocity of the same latents at each of some timesteps."""
    generator = torch.Generator().manual_seed(1)
    clip_tokens = transformer.prepare_clip_tokens(2, torch.randn(1, 16, 1, 8, 8, generator=generator), None, None)
    conditioning = transformer.prepare_conditioning(
        torch.randn(5, 12, generator=generator), torch.randn(8, 25, 6, generator=generator)
    )
    latents = torch.randn(1, 16, 2, 8, 8, generator=generator)
    with transformer.hooked(*([] if memory is None else [memory])):
        return [transformer(latents, torch.tensor([step]), clip_tokens, [conditioning])[0] for step in timesteps]
