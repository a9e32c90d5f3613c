"""The Wan 2.1 VAE: pixels to latents and back, on diffusers' AutoencoderKLWan (spec a.1).

Shapes: B batch (1), T pixel frames, Z latent frames, H x W pixels, h x w latent pixels (an eighth of H x W).
"""

from collections.abc import Iterator, Mapping
from functools import partial

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor, nn

from s2v_tasks.engine.encoders.vae_decoder import decode_end
from s2v_tasks.engine.loading.weights import assign_weights
from s2v_tasks.engine.options import VaePrecision
from s2v_tasks.errors import ConfigurationError

# The official file has no statistics; the latents of the transformer are normalised with these, channel by channel.
LATENT_MEAN = (
    *(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508),
    *(0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
)
LATENT_STD = (
    *(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743),
    *(3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160),
)


class Vae:
    """Encodes and decodes in chunks of four frames and keeps the causal context between them.

    It computes in the dtype of the model; inputs and results are float32.
    """

    def __init__(self, model: AutoencoderKLWan, device: torch.device | str) -> None:
        self.model = model
        self._dtype = next(model.parameters()).dtype
        self._mean = torch.tensor(LATENT_MEAN, device=device).view(1, -1, 1, 1, 1)
        self._inverse_std = (1.0 / torch.tensor(LATENT_STD, device=device)).view(1, -1, 1, 1, 1)

    @classmethod
    def from_state_dict(
        cls, state: Mapping[str, Tensor], device: torch.device | str, precision: VaePrecision = "float32"
    ) -> "Vae":
        """Build from weights with the official keys; the width is read from their shapes.

        In bfloat16 the weights are stored channels last, the layout of the convolutions of tensor cores.

        Raises ConfigurationError if keys or shapes are not those of the Wan 2.1 VAE.
        """
        first_conv = state.get("encoder.conv1.weight")
        if first_conv is None:
            raise ConfigurationError("the weights have no encoder.conv1.weight: they are not the Wan 2.1 VAE")
        with torch.device("meta"):
            model = AutoencoderKLWan(base_dim=first_conv.shape[0])
        dtype = torch.float32 if precision == "float32" else torch.bfloat16
        names = dict(key_pairs())
        renamed = {names.get(key, key): value.to(device, dtype) for key, value in state.items()}
        assign_weights(model, renamed, source="the VAE")
        if precision == "bfloat16":
            lay_out_channels_last(model)
        elif torch.device(device).type == "cpu":
            use_onednn(model)
        return cls(model, device)

    @torch.inference_mode()
    def encode(self, pixels_BCTHW: Tensor) -> Tensor:
        """Encode pixels [B, 3, T, H, W] in [-1, 1] to normalised latents [B, 16, 1 + (T - 1) // 4, h, w].

        The latent is the mode instead of a sample. Frames beyond a multiple of four (plus one) are ignored.
        """
        mode_BCZhw = self.model.encode(pixels_BCTHW.to(self._mean.device, self._dtype)).latent_dist.mode().float()
        latents_BCZhw: Tensor = (mode_BCZhw - self._mean) * self._inverse_std
        return latents_BCZhw

    def decode(self, latents_BCZhw: Tensor, num_frames: int | None = None) -> Tensor:
        """Decode normalised latents [B, 16, Z, h, w] to pixels [B, 3, 4 * Z - 3, H, W], clamped to [-1, 1].

        With `num_frames` only that many frames at the end: the same values with less work.
        """
        pieces = self.decode_pieces(latents_BCZhw, num_frames or 4 * latents_BCZhw.shape[2] - 3)
        return torch.cat(list(pieces), dim=2)

    @torch.inference_mode()
    def decode_pieces(self, latents_BCZhw: Tensor, num_frames: int) -> Iterator[Tensor]:
        """Yield the last `num_frames` frames of `decode`, up to four at a time as they are made."""
        unnormalised_BCZhw = latents_BCZhw.to(self._mean) / self._inverse_std + self._mean
        for frames in decode_end(self.model, unnormalised_BCZhw.to(self._dtype), num_frames):
            yield frames.float()


def lay_out_channels_last(model: nn.Module) -> None:
    """Store the weights of all convolutions channels last, as the kernels of tensor cores read them."""
    for module in model.modules():
        if isinstance(module, nn.Conv3d):
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last_3d)
        elif isinstance(module, nn.Conv2d):
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)


def use_onednn(model: nn.Module) -> None:
    """Route the 3D convolutions of a float32 CPU model through oneDNN, channels last; does nothing without oneDNN.

    For a single video of few channels PyTorch selects its native 3D convolution, which is ten times slower than oneDNN
    (8 channels at 128 x 192: 44 ms instead of 3 ms). The sums are the same up to rounding.
    """
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return
    for module in model.modules():
        if isinstance(module, nn.Conv3d):
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last_3d)
            # The only method through which the padding and caching of a subclass passes.
            module._conv_forward = partial(_convolve, module)  # type: ignore[method-assign]


def _convolve(module: nn.Conv3d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    channels_last = x.contiguous(memory_format=torch.channels_last_3d)
    if not isinstance(module.padding, tuple):
        raise TypeError(f"padding {module.padding!r} is not a tuple of numbers")
    result: Tensor = torch.mkldnn_convolution(
        channels_last, weight, bias, module.padding, module.stride, module.dilation, module.groups
    )
    return result


def key_pairs() -> Iterator[tuple[str, str]]:
    """Return all (official key, diffusers key) pairs of the VAE."""
    for official, library in (("conv1", "quant_conv"), ("conv2", "post_quant_conv")):
        yield from _affine(official, library)
    # Flat index in the official file: residual blocks, and a resampler after each level except the last.
    yield from _half("encoder", _encoder_level_keys())
    yield from _half("decoder", _decoder_level_keys())


def _half(half: str, levels: Iterator[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    pairs = [
        *_affine("conv1", "conv_in"),
        *_residual("middle.0", "mid_block.resnets.0"),
        *_attention("middle.1", "mid_block.attentions.0"),
        *_residual("middle.2", "mid_block.resnets.1"),
        ("head.0.gamma", "norm_out.gamma"),
        *_affine("head.2", "conv_out"),
        *levels,
    ]
    yield from ((f"{half}.{official}", f"{half}.{library}") for official, library in pairs)


def _encoder_level_keys() -> Iterator[tuple[str, str]]:
    for index in range(11):
        official, library = f"downsamples.{index}", f"down_blocks.{index}"
        if index % 3 == 2:
            yield from _resampler(official, library, with_time=index in (5, 8))
        else:
            yield from _residual(official, library, with_shortcut=index in (3, 6))


def _decoder_level_keys() -> Iterator[tuple[str, str]]:
    for index in range(15):
        level, position = divmod(index, 4)
        official = f"upsamples.{index}"
        if position == 3:
            yield from _resampler(official, f"up_blocks.{level}.upsamplers.0", with_time=index in (3, 7))
        else:
            library = f"up_blocks.{level}.resnets.{position}"
            yield from _residual(official, library, with_shortcut=index == 4)


def _residual(official: str, library: str, *, with_shortcut: bool = False) -> Iterator[tuple[str, str]]:
    yield f"{official}.residual.0.gamma", f"{library}.norm1.gamma"
    yield from _affine(f"{official}.residual.2", f"{library}.conv1")
    yield f"{official}.residual.3.gamma", f"{library}.norm2.gamma"
    yield from _affine(f"{official}.residual.6", f"{library}.conv2")
    if with_shortcut:
        yield from _affine(f"{official}.shortcut", f"{library}.conv_shortcut")


def _attention(official: str, library: str) -> Iterator[tuple[str, str]]:
    yield f"{official}.norm.gamma", f"{library}.norm.gamma"
    for name in ("to_qkv", "proj"):
        yield from _affine(f"{official}.{name}", f"{library}.{name}")


def _resampler(official: str, library: str, *, with_time: bool) -> Iterator[tuple[str, str]]:
    for name in ("resample.1", *(("time_conv",) if with_time else ())):
        yield from _affine(f"{official}.{name}", f"{library}.{name}")


def _affine(official: str, library: str) -> Iterator[tuple[str, str]]:
    for name in ("weight", "bias"):
        yield f"{official}.{name}", f"{library}.{name}"
