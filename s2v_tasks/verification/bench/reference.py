"""A forward as the reference computes it (spec c, f.2), written plainly on the engine's weights.

The benchmark measures it and the engine and compares both. Nothing is prepared, shared or fused: every forward encodes
the audio, embeds reference and motion, projects the text and its padding, and rotates in complex128.

Legend: B batch (1), C channels, T latent frames, h w latent sides, n tokens of a frame, N video and M motion tokens,
L all tokens, D model width, H heads, d head width, c = d/2, S text rows, A audio tokens per frame, F pixel frames,
K layers of speech features.
"""

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from s2v_tasks.engine.models.attention import Attention
from s2v_tasks.engine.models.audio import AdaptiveNorm
from s2v_tasks.engine.models.blocks import Block
from s2v_tasks.engine.models.layers import MOTION_LATENTS, PatchConv, RMSNorm, timestep_sinusoid
from s2v_tasks.engine.models.rope import reference_grid, rope_table, video_grid
from s2v_tasks.engine.models.transformer import S2VTransformer


@dataclass(frozen=True)
class ClipTensors:
    """Inputs of a forward besides latents and timestep."""

    reference_BC1hw: Tensor
    motion_BCFhw: Tensor
    context_SD: Tensor
    features_FKC: Tensor


def reference_forward(model: S2VTransformer, latents_BCThw: Tensor, timestep_1: Tensor, clip: ClipTensors) -> Tensor:
    """Return the velocity `[1, 16, T, h, w]` of a later clip without a pose."""
    config = model.config
    frames, rows, columns = latents_BCThw.shape[2], latents_BCThw.shape[3] // 2, latents_BCThw.shape[4] // 2
    kinds_3D = model.trainable_cond_mask.weight

    local_BTAD, global_BTAD = model.encode_audio(rearrange(clip.features_FKC, "f k c -> 1 k c f"))
    sound_TAD, voice_TD = local_BTAD[0, MOTION_LATENTS:], global_BTAD[0, MOTION_LATENTS:, 0]

    video_BND = _patches(model.patch_embedding, latents_BCThw)
    video_BND = video_BND + _patches(model.cond_encoder, torch.zeros_like(latents_BCThw))
    reference_BnD = _patches(model.patch_embedding, clip.reference_BC1hw)
    motion_BMD, motion_grids = model.frame_packer(clip.motion_BCFhw, 2)
    segments = [video_BND, reference_BnD, motion_BMD]
    x_BLD = torch.cat([tokens + kind for tokens, kind in zip(segments, kinds_3D, strict=True)], dim=1)
    num_video = video_BND.shape[1]

    grids = [video_grid(frames, rows, columns), reference_grid(rows, columns), *motion_grids]
    table_LHc = rope_table(grids, config.head_dim).to(x_BLD.device)[:, None].repeat(1, config.num_heads, 1)
    times_2 = torch.cat([timestep_1, torch.zeros_like(timestep_1)])
    e_2D = model.time_embedding(timestep_sinusoid(times_2, config.freq_dim).float())
    e_26D = model.time_projection(e_2D).unflatten(1, (6, -1))
    padding = config.text_len - clip.context_SD.shape[0]
    up, _, down = model.text_embedding
    context_BSD = _linear(down, _gelu(_linear(up, F.pad(clip.context_SD, (0, 0, 0, padding))[None])))

    for layer, block in enumerate(model.blocks):
        x_BLD = _block(cast(Block, block), x_BLD, e_26D, num_video, table_LHc, context_BSD)
        if layer in config.audio_inject_layers:
            index = config.audio_inject_layers.index(layer)
            injector, norm = model.audio_injector.injector[index], model.audio_injector.injector_adain_layers[index]
            frames_TnD = rearrange(x_BLD[:, :num_video], "1 (t n) d -> t n d", t=frames)
            adapted_TnD = _adapt(cast(AdaptiveNorm, norm), frames_TnD, voice_TD)
            residual_TnD = _attention(cast(Attention, injector), adapted_TnD, sound_TAD, None)
            x_BLD[:, :num_video] = x_BLD[:, :num_video] + residual_TnD.flatten(0, 1)[None]

    shift, scale = (model.head.modulation + e_2D[:1])[0]
    patches_BNP = model.head.head(_norm(x_BLD[:, :num_video], config.eps) * (1 + scale) + shift)
    velocity: Tensor = rearrange(
        patches_BNP, "b (t y x) (dy dx c) -> b c t (y dy) (x dx)", t=frames, y=rows, x=columns, dy=2, dx=2
    )
    return velocity


def _block(
    block: Block, x_BLD: Tensor, e_26D: Tensor, num_video: int, table_LHc: Tensor, context_BSD: Tensor
) -> Tensor:
    shift1, scale1, gate1, shift2, scale2, gate2 = (block.modulation + e_26D).transpose(0, 1)

    def modulated(x_BLD: Tensor, shift_2D: Tensor, scale_2D: Tensor) -> Tensor:
        y_BLD = _norm(x_BLD, block.eps)
        segments = y_BLD[:, :num_video], y_BLD[:, num_video:]
        return torch.cat([y * (1 + scale_2D[i]) + shift_2D[i] for i, y in enumerate(segments)], dim=1)

    def gated(y_BLD: Tensor, gate_2D: Tensor) -> Tensor:
        segments = y_BLD[:, :num_video], y_BLD[:, num_video:]
        return torch.cat([y * gate_2D[i] for i, y in enumerate(segments)], dim=1)

    y_BLD = modulated(x_BLD, shift1, scale1)
    x_BLD = x_BLD + gated(_attention(block.self_attn, y_BLD, y_BLD, table_LHc), gate1)
    x_BLD = x_BLD + _attention(block.cross_attn, block.norm3(x_BLD), context_BSD, None)
    up, _, down = block.ffn
    return x_BLD + gated(_linear(down, _gelu(_linear(up, modulated(x_BLD, shift2, scale2)))), gate2)


def _attention(module: Attention, x_BLD: Tensor, context_BSD: Tensor, table_LHc: Tensor | None) -> Tensor:
    def heads(x: Tensor) -> Tensor:
        return rearrange(x, "b l (h d) -> b l h d", h=module.num_heads)

    q = heads(_rms_norm(module.norm_q, _linear(module.q, x_BLD)))
    k = heads(_rms_norm(module.norm_k, _linear(module.k, context_BSD)))
    v = heads(_linear(module.v, context_BSD))
    if table_LHc is not None:
        q, k = (_rotate(x, table_LHc).to(v.dtype) for x in (q, k))
    attended = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    return _linear(module.o, attended.transpose(1, 2).flatten(2))


def _rotate(x_BLHd: Tensor, table_LHc: Tensor) -> Tensor:
    pairs = torch.view_as_complex(rearrange(x_BLHd.double(), "b l h (c pair) -> b l h c pair", pair=2))
    rotated_LHd = torch.view_as_real(pairs * table_LHc).flatten(-2)[0]
    # Two more copies, as in the reference: the rest behind the tokens is appended, and the batch is stacked.
    rest_LHd = x_BLHd[0, table_LHc.shape[0] :].double()
    return torch.stack([torch.cat([rotated_LHd, rest_LHd])]).float()


def _adapt(module: AdaptiveNorm, frames_TnD: Tensor, voice_TD: Tensor) -> Tensor:
    shift, scale = _linear(module.linear, F.silu(voice_TD))[:, None].chunk(2, dim=-1)
    return _norm(frames_TnD, module.norm.eps) * (1 + scale) + shift


def _patches(module: PatchConv, x_BCFhw: Tensor) -> Tensor:
    return F.conv3d(x_BCFhw, module.weight, module.bias, stride=module.stride).flatten(2).transpose(1, 2)


def _linear(module: nn.Module, x: Tensor) -> Tensor:
    return F.linear(x.to(module.weight.dtype), module.weight, module.bias)  # type: ignore[arg-type]


def _gelu(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def _norm(x: Tensor, eps: float) -> Tensor:
    return F.layer_norm(x.float(), x.shape[-1:], eps=eps)


def _rms_norm(module: RMSNorm, x: Tensor) -> Tensor:
    wide = x.float()
    return (wide * torch.rsqrt(wide.pow(2).mean(dim=-1, keepdim=True) + module.eps)).type_as(x) * module.weight
