"""The VAE's decoder, one latent at a time, without work on which the requested frames do not depend.

Its convolutions over time are causal and keep their last two input frames. The later the stage, the larger its frames
(the last two levels are three quarters of the work), and the output of a stage depends on few of its earlier frames. A
stage that starts late, without history, is therefore exact after those frames: 14 frames of the last level are 4
latents, while the receptive field of the whole decoder is 38 latents.

The last two levels, which need the most memory, process the four frames of a latent two at a time.

Shapes: B batch, C channels, Z latent frames, T frames, H x W pixels of a stage, h x w latent pixels.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d
from torch import Tensor, nn

# Marker of diffusers for "one frame was processed": after it a resampler makes two frames of one.
_NOT_THE_FIRST = "Rep"
# Frames per pass of the last levels: as many as a convolution caches. This halves the memory of its input and output
# without further copies of the cache.
_FRAMES_AT_A_TIME = 2


@dataclass
class _Stage:
    """One level of the decoder with the cached frames of its convolutions."""

    modules: list[nn.Module]
    frames_per_latent: int  # at its input
    memory: list[Any] = field(default_factory=list)

    @property
    def num_convolutions(self) -> int:
        """Return the number of consecutive causal convolutions; convolutions of shortcuts use one frame only."""
        modules = (module for part in self.modules for module in part.modules())
        return sum(isinstance(module, WanCausalConv3d) and module.kernel_size[0] > 1 for module in modules)

    @property
    def context_latents(self) -> int:
        """Return the number of earlier latents in the receptive field, counted at its own input."""
        return -(-2 * self.num_convolutions // self.frames_per_latent)

    @property
    def doubles_time(self) -> bool:
        return any(getattr(module, "mode", None) == "upsample3d" for part in self.modules for module in part.modules())

    def start(self, *, at_first_latent: bool) -> None:
        self.memory = [None] * self.num_convolutions
        if self.doubles_time and not at_first_latent:
            # The resampler is the last of its stage.
            self.memory[-1] = _NOT_THE_FIRST

    def __call__(self, x_BCTHW: Tensor) -> Tensor:
        position = [0]
        for module in self.modules:
            if isinstance(module, WanCausalConv3d):
                x_BCTHW = self._convolve(module, x_BCTHW, position)
            elif any(isinstance(part, WanCausalConv3d) for part in module.modules()):
                x_BCTHW = module(x_BCTHW, feat_cache=self.memory, feat_idx=position)
            else:
                x_BCTHW = module(x_BCTHW)
        return x_BCTHW

    def _convolve(self, convolution: WanCausalConv3d, x_BCTHW: Tensor, position: list[int]) -> Tensor:
        before = self.memory[position[0]]
        newest = x_BCTHW[:, :, -2:]
        is_single = newest.shape[2] == 1 and before is not None
        self.memory[position[0]] = torch.cat([before[:, :, -1:], newest], dim=2) if is_single else newest.clone()
        position[0] += 1
        result: Tensor = convolution(x_BCTHW, before)
        return result


def decode_end(model: AutoencoderKLWan, latents_BCZhw: Tensor, num_frames: int) -> Iterator[Tensor]:
    """Yield the last `num_frames` of the 4 Z - 3 frames of unnormalised latents, in pieces of one latent.

    The pieces are clamped, `[B, 3, up to 4, 8 h, 8 w]`. Together they equal the end of the whole decoded video.
    """
    num_latents = latents_BCZhw.shape[2]
    stages = _stages(model)
    starts = _first_latents(stages, num_latents, num_frames)
    hidden_BCZhw = model.post_quant_conv(latents_BCZhw)
    not_wanted = 4 * num_latents - 3 - num_frames
    for index in range(num_latents):
        for stage, start in zip(stages, starts, strict=True):
            if index == start:
                stage.start(at_first_latent=index == 0)
        # Each stage starts no later than the next one.
        started = [stage for stage, start in zip(stages, starts, strict=True) if index >= start]
        x_BCTHW = _run(started, hidden_BCZhw[:, :, index : index + 1])
        # The first latent gives frame 0, latent i the four frames from 4 i - 3 on.
        behind = max(0, not_wanted - max(0, 4 * index - 3))
        if len(started) == len(stages) and behind < x_BCTHW.shape[2]:
            yield x_BCTHW[:, :, behind:].clamp(-1, 1)
        del x_BCTHW  # its memory is needed while the next latent is decoded


def _run(stages: list[_Stage], x_BCTHW: Tensor) -> Tensor:
    """Run the stages in order; stages with more than one frame per latent get a few frames at a time."""
    for number, stage in enumerate(stages):
        if x_BCTHW.shape[2] > _FRAMES_AT_A_TIME:
            parts = torch.split(x_BCTHW, _FRAMES_AT_A_TIME, dim=2)
            return torch.cat([_run(stages[number:], part) for part in parts], dim=2)
        x_BCTHW = stage(x_BCTHW)
    return x_BCTHW


def _stages(model: AutoencoderKLWan) -> list[_Stage]:
    decoder = model.decoder
    stages: list[_Stage] = []
    frames_per_latent = 1
    for level in decoder.up_blocks:
        stages.append(_Stage([*level.resnets, *(level.upsamplers or ())], frames_per_latent))
        frames_per_latent *= 2 if stages[-1].doubles_time else 1
    stages[0].modules[:0] = [decoder.conv_in, decoder.mid_block]
    stages[-1].modules += [decoder.norm_out, decoder.nonlinearity, decoder.conv_out]
    return stages


def _first_latents(stages: list[_Stage], num_latents: int, num_frames: int) -> list[int]:
    # The first latent gives one frame, every other one four.
    first = (4 * num_latents - 3 - num_frames + 3) // 4
    starts: list[int] = []
    for stage in reversed(stages):
        first = max(0, first - stage.context_latents)
        starts.insert(0, first)
    return starts
