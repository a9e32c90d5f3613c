"""The VAE on several ranks by halo exchange: each rank computes a band of rows, and neighbours exchange edge rows.

Convolutions have a receptive field of one row above and below, so each exchanges one row (the halo) with each
neighbour. The attention in the middle of encoder and decoder needs a whole frame. There the bands are gathered, at
latent resolution, where a frame is small. The result equals that of one rank up to rounding, no row is computed twice,
and memory decreases with the number of ranks. The bands are attached by hooks.

Shapes: B batch, C channels, Z latent frames, T frames, H x W pixels, h x w latent pixels; `rows` is the axis before
the last everywhere.
"""

from collections.abc import Iterator
from functools import partial
from itertools import accumulate, pairwise
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl_wan import WanAttentionBlock, WanCausalConv3d, WanResample
from torch import Tensor, nn

from s2v_tasks.engine.encoders.vae import Vae
from s2v_tasks.errors import PermanentError

_ROWS = -2
_PIXELS_PER_LATENT = 8


class ParallelVae:
    """Encodes and decodes like the wrapped `Vae`, which can then be used only in bands.

    Every rank of `group` (None: all ranks) passes the same tensors and gets the whole result.
    """

    def __init__(self, vae: Vae, group: dist.ProcessGroup | None = None) -> None:
        self._vae = vae
        self._bands = _Bands(group)
        for module in vae.model.modules():
            self._work_in_bands(module)

    @torch.inference_mode()
    def encode(self, pixels_BCTHW: Tensor, /) -> Tensor:
        """Encode pixels to normalised latents, see `Vae.encode`."""
        self._bands.divide(pixels_BCTHW.shape[_ROWS] // _PIXELS_PER_LATENT)
        return self._bands.gather(self._vae.encode(self._bands.own(pixels_BCTHW)))

    @torch.inference_mode()
    def decode_pieces(self, latents_BCZhw: Tensor, num_frames: int, /) -> Iterator[Tensor]:
        """Yield the last `num_frames` frames of normalised latents, see `Vae.decode_pieces`."""
        self._bands.divide(latents_BCZhw.shape[_ROWS])
        for band in self._vae.decode_pieces(self._bands.own(latents_BCZhw), num_frames):
            yield self._bands.gather(band)

    def _work_in_bands(self, module: nn.Module) -> None:
        if isinstance(module, WanCausalConv3d) and module.kernel_size[1] > 1:
            width, time = module._padding[0], module._padding[4]
            module._padding = (width, width, 0, 0, time, 0)
            module.register_forward_pre_hook(partial(_add_halo_with_history, self._bands))
        elif isinstance(module, WanResample):
            change, convolution = module.resample[0], module.resample[1]
            if isinstance(change, nn.ZeroPad2d):  # downwards: a stride of two, padded at the right and below
                change.padding = (0, 1, 0, 0)
                convolution.register_forward_pre_hook(partial(_add_halo, self._bands, above=0))
            else:
                convolution.padding = (0, 1)
                convolution.register_forward_pre_hook(partial(_add_halo, self._bands, above=1))
        elif isinstance(module, WanAttentionBlock):
            module.register_forward_pre_hook(lambda _module, args: self._bands.gather(args[0]))
            module.register_forward_hook(lambda _module, _args, output: self._bands.own(output))


class _Bands:
    """Division of rows among the ranks, and the exchanges between them."""

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        self._group = group
        self._rank, self._num_ranks = dist.get_rank(group), dist.get_world_size(group)
        self._latent_rows: list[int] = []

    def divide(self, latent_rows: int) -> None:
        """Give each rank a band of latent rows; the first bands have one row more if the number does not divide."""
        if latent_rows < self._num_ranks:
            raise PermanentError(
                f"a picture of {latent_rows} latent rows ({latent_rows * _PIXELS_PER_LATENT} pixels) cannot be split "
                f"over {self._num_ranks} ranks; expected a row for each. Use at most {latent_rows} ranks for the VAE."
            )
        each, more = divmod(latent_rows, self._num_ranks)
        self._latent_rows = [each + (rank < more) for rank in range(self._num_ranks)]

    def own(self, whole: Tensor) -> Tensor:
        """Return the band of this rank of a tensor with all rows, at any resolution."""
        per_latent = whole.shape[_ROWS] // sum(self._latent_rows)
        start, end = list(pairwise(accumulate(self._latent_rows, initial=0)))[self._rank]
        return whole[..., start * per_latent : end * per_latent, :].contiguous()

    def gather(self, band: Tensor) -> Tensor:
        """Return the tensor with all rows, from the bands of all ranks."""
        per_latent = band.shape[_ROWS] // self._latent_rows[self._rank]
        missing = (self._latent_rows[0] - self._latent_rows[self._rank]) * per_latent
        padded = F.pad(band, (0, 0, 0, missing)).contiguous()
        bands = [torch.empty_like(padded) for _ in self._latent_rows]
        dist.all_gather(bands, padded, group=self._group)
        own = [part[..., : rows * per_latent, :] for part, rows in zip(bands, self._latent_rows, strict=True)]
        return torch.cat(own, dim=_ROWS)

    def with_halo(self, band: Tensor, above: int) -> Tensor:
        """Return the band with `above` (0 or 1) rows of the previous rank and one of the next rank; zeros at edges."""
        first, last = (row.contiguous() for row in (band[..., :1, :], band[..., -1:, :]))
        before, after = torch.zeros_like(first), torch.zeros_like(last)
        messages = []
        if self._rank > 0:
            messages += self._messages(self._rank - 1, first, before if above else None)
        if self._rank < self._num_ranks - 1:
            messages += self._messages(self._rank + 1, last if above else None, after)
        for request in dist.batch_isend_irecv(messages) if messages else []:
            request.wait()
        return torch.cat([before, band, after] if above else [band, after], dim=_ROWS)

    def _messages(self, neighbour: int, row: Tensor | None, into: Tensor | None) -> list[dist.P2POp]:
        peer = neighbour if self._group is None else dist.get_global_rank(self._group, neighbour)
        wanted = ((dist.isend, row), (dist.irecv, into))
        return [dist.P2POp(kind, tensor, peer, self._group) for kind, tensor in wanted if tensor is not None]


def _add_halo(bands: _Bands, _module: nn.Module, args: tuple[Any, ...], *, above: int) -> tuple[Any, ...]:
    return (bands.with_halo(args[0], above),)


def _add_halo_with_history(bands: _Bands, _module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Add the halo to the input of a causal convolution and to its cached earlier frames, in one exchange."""
    x_BCTHW, *rest = args
    history = rest[0] if rest else None
    if history is None:
        return (bands.with_halo(x_BCTHW, above=1),)
    both = bands.with_halo(torch.cat([history, x_BCTHW], dim=2), above=1)
    return both[:, :, history.shape[2] :], both[:, :, : history.shape[2]]
