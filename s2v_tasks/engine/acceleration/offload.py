"""Offload: the blocks stay in host memory, and each is copied to the device when it is needed.

While a block computes, the next one is copied on a separate stream. For clips of usual size, computing takes longer
than copying. At most two blocks are on the device. The results equal those of resident blocks bit for bit.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

_BLOCK_PREFIX = "blocks."
_BUFFER_BYTES, _ALIGNMENT_BYTES = 1 << 30, 256


def keep_blocks_on_host(device: torch.device) -> Callable[[str, Tensor], Tensor]:
    """Return the conversion for the loader that keeps the weights of blocks in host memory, pinned for a GPU.

    Weights share pinned buffers, because torch rounds each pinned allocation up to a power of two: the blocks of 14B
    take 27 GiB instead of 40.
    """
    unused = torch.empty(0, dtype=torch.uint8)

    def keep(key: str, weight: Tensor) -> Tensor:
        nonlocal unused
        if not key.startswith(_BLOCK_PREFIX):
            return weight
        if device.type != "cuda":
            return weight.to("cpu")
        size_bytes = -(-weight.nbytes // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
        if size_bytes > len(unused):
            unused = _pinned(max(size_bytes, _BUFFER_BYTES))
        host, unused = unused[: weight.nbytes], unused[size_bytes:]
        return host.view(weight.dtype).view(weight.shape).copy_(weight)

    return keep


def _pinned(num_bytes: int) -> Tensor:
    return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)


class _Weight(NamedTuple):
    """A weight of a block: its module, its name, and its value in host memory."""

    module: nn.Module
    name: str
    host: nn.Parameter


@dataclass(frozen=True)
class _Copies:
    """The weights of one block on the device; on a GPU they are complete after the event `ready`."""

    weights: list[nn.Parameter]
    ready: torch.cuda.Event | None


class BlockOffload:
    """Lends blocks with their weights on the device; otherwise the weights are in host memory."""

    def __init__(self, blocks: Sequence[nn.Module], device: torch.device) -> None:
        self._blocks, self._device = blocks, device
        self._weights = [_weights_of(block) for block in blocks]
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._computed: torch.cuda.Event | None = None
        self._next: tuple[int, _Copies] | None = None
        # The latest block that was lent, which the GPU may still read. Memory that is free belongs to the stream of the
        # copies: if another tensor finds no room, torch waits for that stream alone and returns it to the driver.
        self._latest: _Copies | None = None

    @contextmanager
    def lend(self, index: int) -> Iterator[nn.Module]:
        """Lend the block `index` during the context; the next one is copied meanwhile (the first after the last).

        If blocks are used in order, each is copied once. Each jump costs one more copy.
        """
        known, self._next = self._next, None
        copies = known[1] if known is not None and known[0] == index else self._copy(index)
        del known
        following = (index + 1) % len(self._blocks)
        self._next = following, self._copy(following)
        if copies.ready is not None:
            torch.cuda.current_stream(self._device).wait_event(copies.ready)
        _place(self._weights[index], copies.weights)
        try:
            yield self._blocks[index]
        finally:
            _place(self._weights[index], [weight.host for weight in self._weights[index]])
            if self._stream is not None:
                self._computed = torch.cuda.current_stream(self._device).record_event()
            self._latest = copies

    def _copy(self, index: int) -> _Copies:
        """Start to copy a block. The copies reuse the memory of the latest block, so they wait for it."""
        self._latest = None
        with self._on_stream():
            if self._stream is not None and self._computed is not None:
                self._stream.wait_event(self._computed)
            weights = [self._to_device(weight.host) for weight in self._weights[index]]
            ready = None if self._stream is None else self._stream.record_event()
        return _Copies([nn.Parameter(weight, requires_grad=False) for weight in weights], ready)

    def _to_device(self, weight: Tensor) -> Tensor:
        return weight.detach().to(self._device, non_blocking=True, copy=True)

    def _on_stream(self) -> AbstractContextManager[object]:
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)


def _weights_of(block: nn.Module) -> list[_Weight]:
    return [
        _Weight(module, name, parameter)
        for module in block.modules()
        for name, parameter in module.named_parameters(recurse=False)
    ]


def _place(weights: Sequence[_Weight], values: Sequence[nn.Parameter]) -> None:
    for weight, value in zip(weights, values, strict=True):
        setattr(weight.module, weight.name, value)
