"""Check offloaded blocks: equal results, one copy per block and forward, at most two blocks on the device."""

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from s2v_tasks.engine.acceleration import offload as offload_module
from s2v_tasks.engine.acceleration.offload import BlockOffload, keep_blocks_on_host
from s2v_tasks.engine.clip import Sampling
from s2v_tasks.engine.loading import Snapshot
from s2v_tasks.engine.loading.networks import load_pipeline
from s2v_tasks.engine.models.config import S2VConfig
from s2v_tasks.engine.models.transformer import S2VTransformer
from s2v_tasks.engine.options import EngineOptions
from s2v_tasks.engine.worker import Worker
from s2v_tasks.errors import ConfigurationError
from tests.engine.clip_inputs import random_clip

CPU = torch.device("cpu")
NUM_BLOCKS = 5


class CountedOffload(BlockOffload):
    """Counts the blocks that are copied and the copies that are alive."""

    def __init__(self, blocks: list[nn.Module]) -> None:
        super().__init__(blocks, CPU)
        self._copied: list[weakref.ref[Any]] = []

    def _copy(self, index: int) -> Any:
        copies = super()._copy(index)
        self._copied += map(weakref.ref, copies.weights)
        return copies

    @property
    def num_copied(self) -> int:
        return len(self._copied)

    @property
    def num_alive(self) -> int:
        gc.collect()
        return sum(reference() is not None for reference in self._copied)


def test_pinned_memory_is_hardly_larger_than_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of 14B take at most 28 GiB of pinned memory, of which torch rounds each part to a power of two."""
    pinned: list[int] = []

    def pinned_memory(num_bytes: int) -> Tensor:
        pinned.append(1 << (num_bytes - 1).bit_length())
        return torch.empty(num_bytes, dtype=torch.uint8, device="meta")

    monkeypatch.setattr(offload_module, "_pinned", pinned_memory)
    keep = keep_blocks_on_host(torch.device("cuda"))
    with torch.device("meta"):
        weights = S2VTransformer(S2VConfig()).to(torch.bfloat16).state_dict()
    kept = {key: keep(key, weight) for key, weight in weights.items()}
    assert all(kept[key].shape == weight.shape and kept[key].dtype == weight.dtype for key, weight in weights.items())
    assert sum(pinned) <= 28 << 30  # as the pods request


def test_pinned_weights_do_not_overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights in the same buffer keep their values and shapes, and one that is larger than a buffer has its own."""
    monkeypatch.setattr(offload_module, "_pinned", lambda num_bytes: torch.empty(num_bytes, dtype=torch.uint8))
    monkeypatch.setattr(offload_module, "_BUFFER_BYTES", 1024)
    keep = keep_blocks_on_host(torch.device("cuda"))
    shapes = [(3,), (5, 7), (40, 40), (1, 6, 2), (9, 9)]
    weights = [torch.full(shape, number, dtype=torch.bfloat16) for number, shape in enumerate(shapes)]
    kept = [keep(f"blocks.0.{number}", weight) for number, weight in enumerate(weights)]
    assert all(map(torch.equal, kept, weights))
    assert keep("head.weight", weights[0]) is weights[0]


def blocks() -> list[nn.Module]:
    return [nn.Linear(3, 3, bias=False).requires_grad_(False) for _ in range(NUM_BLOCKS)]


def test_each_block_is_copied_once_in_a_forward() -> None:
    """In three forwards each block is copied three times, and at most two blocks are on the device."""
    lent, most = blocks(), 0
    offload = CountedOffload(lent)
    hosts = [block.weight for block in lent]
    for _ in range(3):
        for index in range(NUM_BLOCKS):
            with offload.lend(index) as block:
                assert block.weight is not hosts[index]
                assert torch.equal(block.weight, hosts[index])
                most = max(most, offload.num_alive)
            assert block.weight is hosts[index]
    assert offload.num_copied == 3 * NUM_BLOCKS + 1  # the first block is on its way for the next forward
    assert most == 2


def test_a_block_that_the_gpu_may_still_read_is_kept() -> None:
    """The weights of a block stay on the device until the next copies, which wait for its computation and replace it.

    Tensors that are computed between two blocks, as those of the audio injection, must not make torch release them.
    """
    offload = CountedOffload(blocks())
    for index in range(2 * NUM_BLOCKS):
        with offload.lend(index % NUM_BLOCKS) as block:
            latest = weakref.ref(block.weight)
        assert offload.num_alive == 2
        assert latest() is not None
    with offload.lend(0):
        assert offload.num_alive == 2
        assert latest() is None


def test_a_forward_that_is_interrupted_starts_again() -> None:
    """After an interrupted forward, the next one has the right weights, and host memory does not grow."""
    lent = blocks()
    offload = CountedOffload(lent)
    hosts = [block.weight for block in lent]
    with pytest.raises(RuntimeError, match="stop"), offload.lend(0), offload.lend(1):
        raise RuntimeError("stop")
    for index in range(NUM_BLOCKS):
        with offload.lend(index) as block:
            assert torch.equal(block.weight, hosts[index])
    assert all(block.weight is host for block, host in zip(lent, hosts, strict=True))


def test_only_blocks_stay_on_the_host() -> None:
    """The loader keeps the weights of blocks, and no others, on the host."""
    keep = keep_blocks_on_host(torch.device("meta"))
    weight = torch.ones(2, device="meta")
    assert keep("head.head.weight", weight) is weight
    here = torch.ones(2)
    assert torch.equal(keep("blocks.0.ffn.0.weight", here), here)


def _frames(snapshot: Snapshot, options: EngineOptions) -> Tensor:
    pipeline, _ = load_pipeline(Worker(0, 1, CPU), snapshot, "auto", options, guided=True)
    sampling = Sampling(sample_steps=3, sample_guide_scale=4.0, sample_shift=3.0, sample_solver="unipc")
    return torch.from_numpy(pipeline.render_clip(random_clip(seed=1), sampling).frames_u8)


@pytest.mark.parametrize("step_cache", [0.0, 0.5])
def test_a_clip_is_the_same_with_offloaded_blocks(tiny_snapshot_path: Path, step_cache: float) -> None:
    """The frames are equal, also if the first-block cache skips blocks."""
    snapshot = Snapshot.open(tiny_snapshot_path)
    resident = _frames(snapshot, EngineOptions(step_cache=step_cache))
    assert torch.equal(_frames(snapshot, EngineOptions(step_cache=step_cache, offload="blocks")), resident)


def test_other_ways_to_spare_memory_are_refused(tiny_snapshot_path: Path) -> None:
    """Offloaded blocks cannot be combined with sharded or float8 weights."""
    snapshot, worker = Snapshot.open(tiny_snapshot_path), Worker(0, 1, CPU)
    with pytest.raises(ConfigurationError, match="S2V_OFFLOAD is blocks with S2V_WEIGHTS_DTYPE fp8: expected auto"):
        load_pipeline(worker, snapshot, "auto", EngineOptions(offload="blocks", weights_dtype="fp8"), guided=True)
    with pytest.raises(ConfigurationError, match=r"S2V_OFFLOAD is blocks with the layout .*fsdp, which shards"):
        load_pipeline(worker, snapshot, "fsdp", EngineOptions(offload="blocks"), guided=True)
