"""Measure the loading time and the host memory of a checkpoint, on one or several ranks.

Variants, each in new processes on the same files, which the page cache holds:

- "naive": a transformer with random weights, the files read into a dictionary, one copied over the other
- "one thread": the loader of rendering with a single thread
- "threads": the loader as rendering uses it, every rank with the whole transformer
- "sharded": the same under FSDP, every rank with its shards

The weights end in the dtype of a render: bfloat16, as in the files, on a GPU; float32 on a CPU. Weights that are not
sharded are compared with the files: threads, page-locked buffers and streams could mix them up.
"""

import json
import tempfile
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from math import inf
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.multiprocessing.spawn import start_processes

from s2v_tasks.engine.distributed.mesh import shard_weights
from s2v_tasks.engine.loading import shards  # noqa: F401  (the snapshot imports it late, then within the measured time)
from s2v_tasks.engine.loading.snapshot import CONFIG_FILE, TRANSFORMER_INDEX_FILE, Snapshot
from s2v_tasks.engine.models.config import S2VConfig
from s2v_tasks.engine.models.transformer import S2VTransformer
from s2v_tasks.errors import PermanentError, TransientError
from s2v_tasks.scratch import scratch_folder
from s2v_tasks.verification.bench.step import timed

_RELEASED_BYTES = 32.6e9
_HEAD_DIM = 128
_SHARD_BYTES = 1 << 30
# Every weight repeats so many random numbers. The loader's buffers have another length. So each buffer has other
# values, and the check finds two that were swapped.
_BLOCK_NUMBERS = (1 << 22) - 3
_DTYPE = torch.bfloat16
_KILLED_SECONDS = 10.0  # a call of the driver of a GPU may outlast a signal
_STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class LoadResult:
    """One variant on `num_ranks` ranks, by its slowest and its largest rank."""

    name: str
    num_ranks: int
    seconds: float
    bytes_per_second: float  # of the checkpoint, once for all ranks
    host_memory_ratio: float  # peak of a rank's own memory, without mapped files, over the checkpoint's bytes


def bench_load(
    size_bytes: float, num_ranks: int, device: str = "cpu", *, with_naive: bool = True, most_seconds: float = inf
) -> Generator[LoadResult, None, None]:
    """Write a checkpoint of about `size_bytes` to a temporary folder, load it on 1 to `num_ranks` ranks, delete it.

    Yields each variant when it is measured. `device` is "cpu" or "cuda", one GPU per rank. Raises PermanentError for a
    size that is too small for the smallest width, and TransientError if the processes of a variant do not end within
    `most_seconds`.
    """
    with scratch_folder(None, "checkpoint") as folder:
        written = write_checkpoint(folder, size_bytes)
        for ranks in sorted({1, num_ranks}):
            variants = [
                *(["naive"] if with_naive else []),
                "one thread",
                "threads",
                *(["sharded"] if ranks > 1 else []),
            ]
            for variant in variants:
                seconds, peak_bytes = _on_ranks(folder, variant, ranks, device, most_seconds)
                yield LoadResult(variant, ranks, seconds, written / seconds, peak_bytes / written)


def write_checkpoint(folder: Path, size_bytes: float) -> int:
    """Write a transformer of the released proportions, of about `size_bytes`, in shards; returns its exact bytes."""
    heads = round(S2VConfig.num_heads * (size_bytes / _RELEASED_BYTES) ** 0.5)
    if heads < 1:
        raise PermanentError(f"a checkpoint of {size_bytes:.0f} bytes is too small; expected 8 MB at least")
    dim = heads * _HEAD_DIM
    config = S2VConfig(dim=dim, ffn_dim=dim * 27 // 10, num_heads=heads, audio_dim=min(S2VConfig.audio_dim, dim))
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in S2VTransformer(config).state_dict().items()}
    block = _random_block()
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(_shards(shapes)):
        name = f"diffusion_pytorch_model-{number:05}.safetensors"
        save_file({key: _repeated(block, shapes[key]) for key in shard}, folder / name)
        weight_map |= dict.fromkeys(shard, name)
    total_size = int(sum(shape.numel() for shape in shapes.values())) * _DTYPE.itemsize
    index = {"metadata": {"total_size": total_size}, "weight_map": weight_map}
    (folder / TRANSFORMER_INDEX_FILE).write_text(json.dumps(index))
    (folder / CONFIG_FILE).write_text(json.dumps(asdict(config)))
    return total_size


def _shards(shapes: dict[str, torch.Size]) -> Iterator[list[str]]:
    keys: list[str] = []
    size_bytes = 0
    for key, shape in shapes.items():
        if keys and size_bytes + shape.numel() * _DTYPE.itemsize > _SHARD_BYTES:
            yield keys
            keys, size_bytes = [], 0
        keys.append(key)
        size_bytes += shape.numel() * _DTYPE.itemsize
    yield keys


def _random_block() -> Tensor:
    return torch.randn(_BLOCK_NUMBERS, generator=torch.Generator().manual_seed(0)).to(_DTYPE)


def check_loaded(module: nn.Module) -> None:
    """Raise RuntimeError if a weight differs from that of `write_checkpoint`; sharded weights are not compared."""
    weights = {key: weight for key, weight in module.state_dict().items() if not isinstance(weight, DTensor)}
    blocks = {device: _random_block().to(device) for device in {weight.device for weight in weights.values()}}
    for key, weight in weights.items():
        block = blocks[weight.device].to(weight.dtype)
        if not all(torch.equal(piece, block[: len(piece)]) for piece in torch.split(weight.flatten(), len(block))):
            raise RuntimeError(f"{key} was loaded with other values than the file has: the loader mixes up weights")


def _repeated(block: Tensor, shape: torch.Size) -> Tensor:
    # No other allocations: small tensors between large ones that are freed would fragment the memory.
    numbers = torch.empty(shape.numel(), dtype=block.dtype)
    for piece in torch.split(numbers, len(block)):
        piece.copy_(block[: len(piece)])
    return numbers.view(shape)


def _on_ranks(folder: Path, variant: str, num_ranks: int, device: str, most_seconds: float) -> tuple[float, int]:
    with tempfile.TemporaryDirectory() as name:
        arguments, last = (folder, Path(name), variant, num_ranks, device), time.monotonic() + most_seconds
        ranks = start_processes(_rank, arguments, num_ranks, join=False, start_method="spawn")  # type: ignore[no-untyped-call]
        while not ranks.join(timeout=1.0):
            if time.monotonic() > last:
                for process in ranks.processes:
                    process.kill()
                    process.join(_KILLED_SECONDS)
                raise TransientError(
                    f"Loading by {variant} took more than {most_seconds:g} s and was ended. Try again."
                )
        measured = [json.loads((Path(name) / f"{rank}.json").read_text()) for rank in range(num_ranks)]
    return max(rank["seconds"] for rank in measured), max(rank["peak_bytes"] for rank in measured)


def _rank(rank: int, folder: Path, meeting: Path, variant: str, num_ranks: int, device: str) -> None:
    target = torch.device("cuda", rank) if device == "cuda" else torch.device("cpu")
    if device == "cuda":
        torch.cuda.set_device(rank)
        torch.empty(1, device=target)  # begins to use the GPU before the time is measured
        torch.cuda.synchronize()
    if num_ranks > 1:
        backend = "nccl" if device == "cuda" else "gloo"
        dist.init_process_group(backend, init_method=f"file://{meeting}/ranks", rank=rank, world_size=num_ranks)
        dist.barrier()
    with _peak_of_own_memory() as peak:
        loaded, seconds = timed(lambda: _load(folder, variant, target, num_ranks), target)
    check_loaded(loaded)
    del loaded
    (meeting / f"{rank}.json").write_text(json.dumps({"seconds": seconds, "peak_bytes": peak[0]}))
    if num_ranks > 1:
        dist.barrier()
        dist.destroy_process_group()


def _load(folder: Path, variant: str, device: torch.device, num_ranks: int) -> nn.Module:
    snapshot, dtype = Snapshot(folder), torch.float32 if device.type == "cpu" else _DTYPE
    if variant == "naive":
        config = S2VConfig.from_json(json.loads((folder / CONFIG_FILE).read_text()))
        transformer = S2VTransformer(config).to(_DTYPE)
        state: dict[str, Any] = {}
        for shard in snapshot.transformer_shards():
            state |= load_file(shard)
        transformer.load_state_dict(state)
        return transformer.to(device, dtype)
    transformer = snapshot.build_transformer()
    if variant == "sharded":
        shard_weights(transformer, init_device_mesh(device.type, (num_ranks,)))
    snapshot.fill_transformer(transformer, device, dtype, num_threads=1 if variant == "one thread" else None)
    return transformer


@contextmanager
def _peak_of_own_memory() -> Iterator[list[int]]:
    """Measure the peak of the private memory of this process while the block runs, in bytes above its start.

    The list that is yielded holds the peak. Mapped files are not counted: all ranks share them, and the kernel can
    drop them at any time.
    """
    peak, done = [0], threading.Event()
    before = _own_bytes()

    def watch() -> None:
        while not done.wait(0.005):
            peak[0] = max(peak[0], _own_bytes() - before)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        peak[0] = max(peak[0], _own_bytes() - before)
        done.set()
        watcher.join()


def _own_bytes() -> int:
    fields = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines())
    # gVisor, in which some GPU machines run, has only the sum with the mapped files.
    return int(fields.get("RssAnon", fields["VmRSS"]).split()[0]) * 1024
