"""Check the loading of sharded weights."""

import multiprocessing
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.multiprocessing.spawn import start_processes

from s2v_tasks.engine.distributed.mesh import shard_weights
from s2v_tasks.engine.loading import Snapshot

NUM_RANKS = 2


def load_on_rank(rank: int, folder: Path, snapshot_path: Path) -> None:
    """Load sharded weights; compare each shard with the files and a result with the unsharded transformer."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=NUM_RANKS)
    snapshot = Snapshot.open(snapshot_path)
    sharded = snapshot.build_transformer()
    shard_weights(sharded, init_device_mesh("cpu", (NUM_RANKS,)))
    snapshot.fill_transformer(sharded, "cpu", torch.float32)

    files = {key: value for shard in snapshot.transformer_shards() for key, value in load_file(shard).items()}
    own_numbers = 0
    for name, parameter in sharded.named_parameters():
        assert isinstance(parameter, DTensor)
        own_numbers += parameter.to_local().numel()
        torch.testing.assert_close(parameter.full_tensor(), files[name].float(), rtol=0, atol=0)
    # Tensors of a single row are whole on the first rank.
    assert own_numbers < 0.51 * sum(value.numel() for value in files.values())

    context = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    alone = snapshot.build_transformer()
    snapshot.fill_transformer(alone, "cpu", torch.float32)
    with torch.inference_mode():
        for actual, expected in zip(sharded.prepare_text(context), alone.prepare_text(context), strict=True):
            torch.testing.assert_close(actual, expected)
    dist.destroy_process_group()


def test_each_rank_loads_its_shards(tiny_snapshot_path: Path, tmp_path: Path) -> None:
    """Under FSDP each rank reads its part of every weight, and all parts together are the transformer."""
    multiprocessing.set_forkserver_preload([shard_weights.__module__])  # imported once for all ranks
    start_processes(  # type: ignore[no-untyped-call]
        load_on_rank, (tmp_path, tiny_snapshot_path), NUM_RANKS, start_method="forkserver"
    )
