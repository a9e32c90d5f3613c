"""The Wan VAE over whole videos at once, for training.

The library encodes and decodes one latent frame after the other with caches. Here all frames go through each layer
together, `[B * T, C, H, W]`, by 2D convolutions with gradients. The weights are those of the library's modules.

Two parts have no effect, as their weights are zero and stay so: the attention in the middle, and the two earlier time
taps of the 3x3x3 convolutions. Frames therefore meet only where their number is halved or doubled: what holds for short
films in the training holds for films of any length.
"""

from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from torch import Tensor, nn

BASE_WIDTH = 8
CHANNELS = 16
_MODE = torch.channels_last


def new_vae(generator: torch.Generator) -> AutoencoderKLWan:
    """Return an untrained VAE whose residual blocks begin near the identity and that blends frames in time."""
    with torch.random.fork_rng():
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator)))
        vae = AutoencoderKLWan(base_dim=BASE_WIDTH)
    with torch.no_grad():
        for name, module in vae.named_modules():
            if isinstance(module, nn.Conv3d) and module.kernel_size == (3, 3, 3):
                module.weight *= (0.2 if name.endswith("conv2") else 1.0) * 3**0.5
            if name.endswith("time_conv"):
                _blend_frames(module, doubles=name.startswith("decoder"))
            if name.endswith("attentions.0"):
                module.proj.weight.zero_()
                module.proj.bias.zero_()
                module.requires_grad_(False)
    keep_frames_apart(vae)
    return vae


@torch.no_grad()
def keep_frames_apart(vae: AutoencoderKLWan) -> None:
    """Set the earlier time taps of all 3x3x3 convolutions to zero."""
    for module in vae.modules():
        if isinstance(module, nn.Conv3d) and module.kernel_size == (3, 3, 3):
            module.weight[:, :, :2] = 0


def _blend_frames(conv: Any, *, doubles: bool) -> None:
    """Let two frames become their mean; or one frame become the mean with the frame before, and itself."""
    conv.weight.zero_()
    conv.bias.zero_()
    same = torch.eye(conv.weight.shape[1])
    if doubles:
        between, current = conv.weight[:, :, :, 0, 0].chunk(2)
        between[:, :, 1:] = 0.5 * same[..., None]
        current[:, :, 2] = same
    else:
        conv.weight[:, :, 1:, 0, 0] = 0.5 * same[..., None]


def encode(vae: AutoencoderKLWan, pixels_BCTHW: Tensor) -> Tensor:
    """Return latents `[B, 16, 1 + (T - 1) // 4, h, w]` as the last layer gives them; T is 4 n + 1."""
    batch, encoder = pixels_BCTHW.shape[0], vae.encoder
    x = pixels_BCTHW.transpose(1, 2).flatten(0, 1).contiguous(memory_format=_MODE)
    x = _conv(encoder.conv_in, x, batch)
    for block in encoder.down_blocks:
        x = _down(block, x, batch) if hasattr(block, "resample") else _residual(block, x, batch)
    for block in encoder.mid_block.resnets:
        x = _residual(block, x, batch)
    x = _conv(encoder.conv_out, _norm_silu(encoder.norm_out, x), batch)
    x = _conv(vae.quant_conv, x, batch)[:, :CHANNELS]
    return x.unflatten(0, (batch, -1)).transpose(1, 2)


def decode(vae: AutoencoderKLWan, latents_BCZhw: Tensor) -> Tensor:
    """Return pixels `[B, 3, 4 Z - 3, H, W]` of latents, not clamped."""
    batch, decoder = latents_BCZhw.shape[0], vae.decoder
    x = latents_BCZhw.transpose(1, 2).flatten(0, 1).contiguous(memory_format=_MODE)
    x = _conv(decoder.conv_in, _conv(vae.post_quant_conv, x, batch), batch)
    for block in decoder.mid_block.resnets:
        x = _residual(block, x, batch)
    for level in decoder.up_blocks:
        for block in level.resnets:
            x = _residual(block, x, batch)
        if level.upsamplers is not None:
            x = _up(level.upsamplers[0], x, batch)
    x = _conv(decoder.conv_out, _norm_silu(decoder.norm_out, x), batch)
    return x.unflatten(0, (batch, -1)).transpose(1, 2)


def _conv(conv: Any, x: Tensor, batch: int) -> Tensor:
    """Return the causal convolution of each film, its time taps as channels; frames before the first are zero."""
    weight = conv.weight
    padding, (stride, *_) = conv._padding, conv.stride
    taps = weight.shape[2]
    num_frames = x.shape[0] // batch
    if conv.kernel_size == (3, 3, 3):  # the earlier taps are zero
        weight, taps = weight[:, :, 2:], 1
    if taps == 3:
        frames = x.unflatten(0, (batch, num_frames))
        before = frames.new_zeros(batch, padding[4], *x.shape[1:])
        frames = torch.cat([before, frames], dim=1)
        num_out = (frames.shape[1] - 3) // stride + 1
        x = torch.cat([frames[:, k : k + stride * (num_out - 1) + 1 : stride] for k in range(3)], dim=2).flatten(0, 1)
    flat = weight.transpose(1, 2).flatten(1, 2)
    x = x.contiguous(memory_format=_MODE)
    return F.conv2d(x, flat.contiguous(memory_format=_MODE), conv.bias, padding=padding[2])


def _norm_silu(norm: Any, x: Tensor) -> Tensor:
    gamma = norm.gamma.flatten()[:, None, None]
    return F.silu(x * (torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-12) * gamma))


def _residual(block: Any, x: Tensor, batch: int) -> Tensor:
    y = _conv(block.conv1, _norm_silu(block.norm1, x), batch)
    y = _conv(block.conv2, _norm_silu(block.norm2, y), batch)
    return y + (x if isinstance(block.conv_shortcut, nn.Identity) else _conv(block.conv_shortcut, x, batch))


def _down(block: Any, x: Tensor, batch: int) -> Tensor:
    conv = block.resample[1]
    x = F.conv2d(F.pad(x, (0, 1, 0, 1)).contiguous(memory_format=_MODE), conv.weight, conv.bias, stride=2)
    if block.mode != "downsample3d" or x.shape[0] == batch:
        return x
    frames = x.unflatten(0, (batch, -1))
    halved = _conv(block.time_conv, x, batch).unflatten(0, (batch, -1))
    return torch.cat([frames[:, :1], halved], dim=1).flatten(0, 1)


def _up(block: Any, x: Tensor, batch: int) -> Tensor:
    frames = x.unflatten(0, (batch, -1))
    if block.mode == "upsample3d" and frames.shape[1] > 1:
        # The first frame stays one and is not seen by the others.
        doubled = _conv(block.time_conv, frames[:, 1:].flatten(0, 1), batch)
        pairs = doubled.unflatten(1, (2, -1)).transpose(0, 1)  # [2, B * T, C, h, w]
        rest = torch.stack([pairs[0], pairs[1]], dim=1).flatten(0, 1).unflatten(0, (batch, -1))
        x = torch.cat([frames[:, :1], rest], dim=1).flatten(0, 1)
    conv = block.resample[1]
    x = F.interpolate(x, scale_factor=2.0, mode="nearest")
    return F.conv2d(x.contiguous(memory_format=_MODE), conv.weight, conv.bias, padding=1)
