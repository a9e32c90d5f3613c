"""The VAE over several ranks: each works on a band of rows and borrows one row of its neighbours per convolution.

All of the VAE is local in space but the attention in the middle of each half, which looks at a whole frame: there the
bands are gathered, at latent resolution, where a frame is small. So the result is that of one rank up to rounding,
no row is computed twice, and memory falls with the number of ranks. The model itself knows nothing of this: the bands
come in through hooks.

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
    """Encodes and decodes like the `Vae` it takes over, which from then on works in bands only.

    Every rank of `group` (None: all ranks) calls with the same tensors and gets the whole result.
    """

    def __init__(self, vae: Vae, group: dist.ProcessGroup | None = None) -> None:
        self._vae = vae
        self._bands = _Bands(group)
        for module in vae.model.modules():
            self._work_in_bands(module)

    @torch.inference_mode()
    def encode(self, pixels_BCTHW: Tensor, /) -> Tensor:
        """Pixels to normalised latents, see `Vae.encode`."""
        self._bands.divide(pixels_BCTHW.shape[_ROWS] // _PIXELS_PER_LATENT)
        return self._bands.gather(self._vae.encode(self._bands.own(pixels_BCTHW)))

    @torch.inference_mode()
    def decode_pieces(self, latents_BCZhw: Tensor, num_frames: int, /) -> Iterator[Tensor]:
        """Normalised latents to the last `num_frames` frames, see `Vae.decode_pieces`."""
        self._bands.divide(latents_BCZhw.shape[_ROWS])
        for band in self._vae.decode_pieces(self._bands.own(latents_BCZhw), num_frames):
            yield self._bands.gather(band)

    def _work_in_bands(self, module: nn.Module) -> None:
        if isinstance(module, WanCausalConv3d) and module.kernel_size[1] > 1:
            width, time = module._padding[0], module._padding[4]
            module._padding = (width, width, 0, 0, time, 0)
            module.register_forward_pre_hook(partial(_widen_with_memory, self._bands))
        elif isinstance(module, WanResample):
            change, convolution = module.resample[0], module.resample[1]
            if isinstance(change, nn.ZeroPad2d):  # downwards: a stride of two, padded at the right and below
                change.padding = (0, 1, 0, 0)
                convolution.register_forward_pre_hook(partial(_widen, self._bands, above=0))
            else:
                convolution.padding = (0, 1)
                convolution.register_forward_pre_hook(partial(_widen, self._bands, above=1))
        elif isinstance(module, WanAttentionBlock):
            module.register_forward_pre_hook(lambda _module, args: self._bands.gather(args[0]))
            module.register_forward_hook(lambda _module, _args, output: self._bands.own(output))


class _Bands:
    """How rows are divided among the ranks, and what neighbours tell each other."""

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        self._group = group
        self._rank, self._num_ranks = dist.get_rank(group), dist.get_world_size(group)
        self._latent_rows: list[int] = []

    def divide(self, latent_rows: int) -> None:
        """Give each rank a band of latent rows; the first ones get one more where they do not come out even."""
        if latent_rows < self._num_ranks:
            raise PermanentError(
                f"a picture of {latent_rows} latent rows ({latent_rows * _PIXELS_PER_LATENT} pixels) cannot be split "
                f"over {self._num_ranks} ranks; expected a row for each. Use at most {latent_rows} ranks for the VAE."
            )
        each, more = divmod(latent_rows, self._num_ranks)
        self._latent_rows = [each + (rank < more) for rank in range(self._num_ranks)]

    def own(self, whole: Tensor) -> Tensor:
        """This rank's band of a tensor with all rows, at any resolution."""
        per_latent = whole.shape[_ROWS] // sum(self._latent_rows)
        start, end = list(pairwise(accumulate(self._latent_rows, initial=0)))[self._rank]
        return whole[..., start * per_latent : end * per_latent, :].contiguous()

    def gather(self, band: Tensor) -> Tensor:
        """The tensor with all rows, from the bands of all ranks."""
        per_latent = band.shape[_ROWS] // self._latent_rows[self._rank]
        missing = (self._latent_rows[0] - self._latent_rows[self._rank]) * per_latent
        padded = F.pad(band, (0, 0, 0, missing)).contiguous()
        bands = [torch.empty_like(padded) for _ in self._latent_rows]
        dist.all_gather(bands, padded, group=self._group)
        own = [part[..., : rows * per_latent, :] for part, rows in zip(bands, self._latent_rows, strict=True)]
        return torch.cat(own, dim=_ROWS)

    def widen(self, band: Tensor, above: int) -> Tensor:
        """The band with `above` (0 or 1) rows of the rank before and one of the rank after, zeros at the ends."""
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


def _widen(bands: _Bands, _module: nn.Module, args: tuple[Any, ...], *, above: int) -> tuple[Any, ...]:
    return (bands.widen(args[0], above),)


def _widen_with_memory(bands: _Bands, _module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Widen what a causal convolution sees together with the frames that it remembers, in one exchange."""
    x_BCTHW, *rest = args
    memory = rest[0] if rest else None
    if memory is None:
        return (bands.widen(x_BCTHW, above=1),)
    both = bands.widen(torch.cat([memory, x_BCTHW], dim=2), above=1)
    return both[:, :, memory.shape[2] :], both[:, :, : memory.shape[2]]
