"""The transformer of the engine as a function with gradients, for training in batches.

The engine's layers work in place and use fused kernels without gradients. Here the same weights, those of an
`S2VTransformer`, are used by plain operations. Text and pose have no effect: the weights through which they would act
are zero and stay so, and their products are left out.

Legend: B batch, C latent channels, T latent frames, h w latent height and width, n patches per frame, N = T * n, L all
tokens, D model width, H heads, d head width, F video frames, K feature layers.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from s2v_tasks.engine.models.config import S2VConfig
from s2v_tasks.engine.models.layers import MOTION_LATENTS, timestep_sinusoid
from s2v_tasks.engine.models.rope import Grid, cos_sin, motion_grids, reference_grid, rope_table
from s2v_tasks.engine.models.transformer import MOTION_FRAMES, S2VTransformer

CONFIG: dict[str, Any] = {
    "_class_name": "WanModel_S2V",
    "model_type": "s2v",
    "dim": 160,
    "ffn_dim": 320,
    "num_heads": 4,
    "num_layers": 4,
    "in_dim": 16,
    "out_dim": 16,
    "freq_dim": 64,
    "text_dim": 32,
    "text_len": 512,
    "cond_dim": 16,
    "audio_dim": 32,
    "num_audio_token": 4,
    "audio_inject_layers": [0, 1, 2],
    "eps": 1e-6,
    "enable_adain": True,
    "adain_mode": "attn_norm",
    "zero_timestep": True,
    "enable_framepack": True,
    "framepack_drop_mode": "padd",
    "add_last_motion": True,
}
_VIDEO, _REFERENCE, _MOTION = 0, 1, 2
_LOCAL_HEADS = 2
# Weights behind text and pose; zeros take no room in a compressed file.
_UNUSED = ("cross_attn.", "text_embedding.", "cond_encoder.")


@dataclass(frozen=True)
class Scene:
    """Inputs of a batch of clips; `first` is the latent frame of the clip at which the noisy latents begin."""

    reference_BC1hw: Tensor
    motion_BCFhw: Tensor | None  # 19 latents before the clip
    features_BFKC: Tensor  # of the whole clip up to the last noisy latent
    first: int = 0


def new_transformer(generator: torch.Generator, config: dict[str, Any] = CONFIG) -> S2VTransformer:
    """Return an untrained transformer; two heads of each block begin by looking at their own place in all frames."""
    net = S2VTransformer(S2VConfig.from_json(config))
    for name, value in net.named_parameters():
        _initialise(name, value.data, generator)
    for block in net.blocks:
        _look_at_own_place(block.self_attn)
        block.modulation.data[0, [2, 5]] = 1  # the gates
    for name, value in net.named_parameters():
        unused = any(part in name for part in _UNUSED)
        if unused:
            value.data.zero_()
        value.requires_grad_(not unused and "norm3." not in name)
    return net


def _initialise(name: str, value: Tensor, generator: torch.Generator) -> None:
    gains = {"modulation": 0.0, "time_projection": 0.1, "time_embedding": 0.7, "head.head": 0.2, "adain": 0.1,
             "padding_tokens": 0.0, "cond_mask": 8.0, ".o.": 0.4, "ffn.2": 0.4}  # fmt: skip
    if name.endswith("casual_audio_encoder.weights"):
        value.fill_(1.0)
    elif name.endswith("bias"):
        value.zero_()
    elif value.ndim == 1:
        value.fill_(1.0)
    else:
        gain = next((gain for part, gain in gains.items() if part in name), 1.0)
        value.copy_(torch.randn(value.shape, generator=generator) * (gain / math.sqrt(math.prod(value.shape[1:]))))


def _look_at_own_place(attention: Any) -> None:
    """Equal constants in the two fastest rotating pairs of the row and column bands match best at distance 0."""
    head_dim = attention.q.out_features // attention.num_heads
    band = 2 * (head_dim // 6)
    rows = head_dim - 2 * band
    for name in ("q", "k"):
        linear, norm = getattr(attention, name), getattr(attention, f"norm_{name}")
        linear.weight.data *= 0.5
        norm.weight.data.fill_(1.6)
        for head in range(_LOCAL_HEADS):
            for start in (rows, rows + band):
                linear.bias.data[[head * head_dim + start, head * head_dim + start + 2]] = 4.0


def sound_tokens(net: S2VTransformer, features_BFKC: Tensor) -> tuple[Tensor, Tensor]:
    """Return local `[B, T, A, D]` and global tokens `[B, T, 1, D]` of clips."""
    history = features_BFKC[:, :1].expand(-1, MOTION_FRAMES, -1, -1)
    features = rearrange(torch.cat([history, features_BFKC], dim=1), "b f k c -> b k c f")
    local, overall = net.casual_audio_encoder(features)
    return local[:, MOTION_LATENTS:], overall[:, MOTION_LATENTS:]


def velocity(net: S2VTransformer, latents_BCThw: Tensor, sigma_B: Tensor, scene: Scene) -> tuple[Tensor, Tensor]:
    """Return the velocity `[B, 16, T, h, w]` and the local sound tokens `[B, T, A, D]`."""
    batch, _, num_frames, height, width = latents_BCThw.shape
    rows, columns, n = height // 2, width // 2, height * width // 4
    num_video = num_frames * n
    local, overall = (x[:, scene.first :] for x in sound_tokens(net, scene.features_BFKC))
    x_BLD, rope = _tokens(net, latents_BCThw, scene, rows, columns)
    e_BD, e_B6D = _embed_time(net, 1000 * sigma_B)
    _, still_16D = _embed_time(net, torch.zeros(1))
    for index, block in enumerate(net.blocks):
        m_B6D, m_16D = block.modulation + e_B6D, block.modulation + still_16D

        length = x_BLD.shape[1] - num_video
        segments = [m_B6D[:, :, None].expand(-1, -1, num_video, -1), m_16D[:, :, None].expand(batch, -1, length, -1)]
        shift1, scale1, gate1, shift2, scale2, gate2 = torch.cat(segments, dim=2).unbind(1)
        y = _norm(x_BLD) * (1 + scale1) + shift1
        x_BLD = x_BLD + gate1 * _self_attention(block.self_attn, y, rope)
        y = _norm(x_BLD) * (1 + scale2) + shift2
        hidden = F.gelu(F.linear(y, block.ffn[0].weight, block.ffn[0].bias), approximate="tanh")
        x_BLD = x_BLD + gate2 * F.linear(hidden, block.ffn[2].weight, block.ffn[2].bias)
        if index in net.config.audio_inject_layers:
            which = net.config.audio_inject_layers.index(index)
            video = rearrange(x_BLD[:, :num_video], "b (t n) d -> (b t) n d", n=n)
            residual = _inject(net.audio_injector, which, video, local.flatten(0, 1), overall.flatten(0, 1))
            injected = rearrange(residual, "(b t) n d -> b (t n) d", b=batch)
            x_BLD = torch.cat([x_BLD[:, :num_video] + injected, x_BLD[:, num_video:]], dim=1)
    shift, scale = (net.head.modulation + e_BD[:, None]).unbind(1)
    y = _norm(x_BLD[:, :num_video]) * (1 + scale[:, None]) + shift[:, None]
    patches = F.linear(y, net.head.head.weight, net.head.head.bias)
    result = rearrange(
        patches, "b (t y x) (dy dx c) -> b c t (y dy) (x dx)", t=num_frames, y=rows, x=columns, dy=2, dx=2
    )
    return result, local


def _tokens(net: S2VTransformer, latents: Tensor, scene: Scene, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    kinds = net.trainable_cond_mask.weight
    times = tuple(range(scene.first, scene.first + latents.shape[2]))
    grids = [Grid(times, tuple(range(rows)), tuple(range(columns))), reference_grid(rows, columns)]
    parts = [_patches(net.patch_embedding, latents) + kinds[_VIDEO]]
    parts.append(_patches(net.patch_embedding, scene.reference_BC1hw) + kinds[_REFERENCE])
    if scene.motion_BCFhw is not None:
        oldest, middle, newest = torch.split(scene.motion_BCFhw, [16, 2, 1], dim=2)
        packer = net.frame_packer
        for conv, part in ((packer.proj, newest), (packer.proj_2x, middle), (packer.proj_4x, oldest)):
            parts.append(_patches(conv, part) + kinds[_MOTION])
        grids += motion_grids(2 * rows, 2 * columns)
    return torch.cat(parts, dim=1), cos_sin(rope_table(grids, net.config.head_dim))


def _patches(conv: Any, x: Tensor) -> Tensor:
    dt, dy, dx = conv.kernel_size
    values = rearrange(x, "b c (f dt) (h dy) (w dx) -> b (f h w) (c dt dy dx)", dt=dt, dy=dy, dx=dx)
    return F.linear(values, conv.weight.flatten(1), conv.bias)


def _embed_time(net: S2VTransformer, timestep_B: Tensor) -> tuple[Tensor, Tensor]:
    e_BD = net.time_embedding(timestep_sinusoid(timestep_B, net.config.freq_dim).float())
    return e_BD, net.time_projection(e_BD).unflatten(1, (6, -1))


def _norm(x: Tensor, eps: float = 1e-6) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=eps)


def _projected(linear: Any, norm: Any, x: Tensor, num_heads: int) -> Tensor:
    """Return heads `[B, H, L, d]` of a projection, normalised over the full width where there is a norm."""
    y = F.linear(x, linear.weight, linear.bias)
    if norm is not None:
        y = F.rms_norm(y.float(), y.shape[-1:], norm.weight, norm.eps)  # the fused kernel needs one dtype
    return y.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def _self_attention(attention: Any, x_BLD: Tensor, rope_Lc2: Tensor) -> Tensor:
    heads = attention.num_heads
    q = _rotate(_projected(attention.q, attention.norm_q, x_BLD, heads), rope_Lc2)
    k = _rotate(_projected(attention.k, attention.norm_k, x_BLD, heads), rope_Lc2)
    y = _attend(q, k, _projected(attention.v, None, x_BLD, heads))
    return F.linear(y.transpose(1, 2).flatten(2), attention.o.weight, attention.o.bias)


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    if not torch.is_autocast_enabled("cpu"):
        return F.scaled_dot_product_attention(q, k, v)
    # With gradients in bfloat16, two products and a softmax take half the time of the fused kernel of a CPU.
    with torch.autocast("cpu", enabled=False):
        q, k, v = (x.bfloat16() for x in (q * q.shape[-1] ** -0.5, k, v))
        return (q @ k.transpose(-1, -2)).softmax(-1) @ v


def _rotate(x_BHLd: Tensor, rope_Lc2: Tensor) -> Tensor:
    pairs = torch.view_as_complex(x_BHLd.contiguous().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * torch.view_as_complex(rope_Lc2)).flatten(-2)


def _inject(injector: Any, index: int, frames: Tensor, local: Tensor, overall: Tensor) -> Tensor:
    norm, attention = injector.injector_adain_layers[index], injector.injector[index]
    shift, scale = F.linear(F.silu(overall), norm.linear.weight, norm.linear.bias).chunk(2, dim=-1)
    adapted = _norm(frames, norm.norm.eps) * (1 + scale) + shift
    heads = attention.num_heads
    q = _projected(attention.q, attention.norm_q, adapted, heads)
    k = _projected(attention.k, attention.norm_k, local, heads)
    y = F.scaled_dot_product_attention(q, k, _projected(attention.v, None, local, heads))
    return F.linear(y.transpose(1, 2).flatten(2), attention.o.weight, attention.o.bias)


class SoundHead(nn.Module):
    """States the mouth of each latent frame from its sound tokens; it is dropped after the training."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, 8)

    def forward(self, local_BTAD: Tensor) -> Tensor:
        """Return opening and width of four frames, `[B, 4 * T, 2]`."""
        mouths: Tensor = rearrange(self.linear(local_BTAD[:, :, :-1].mean(2)), "b t (f m) -> b (t f) m", m=2)
        return mouths
