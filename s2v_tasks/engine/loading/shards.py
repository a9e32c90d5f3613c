"""Safetensors files straight into a module on the meta device, tensor by tensor.

The files are mapped, so the ranks of a node share one copy in the page cache. A rank takes of each tensor only what it
keeps: its shard, on its device, in its dtype or quantized. What it holds beside that is one tensor at most.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from s2v_tasks.engine.loading.weights import check_fit, finish
from s2v_tasks.errors import ConfigurationError
from s2v_tasks.log import get_logger

_REMEDY = "download it again"


def load_shards(
    module: nn.Module,
    shards: Sequence[Path],
    *,
    device: torch.device | str,
    dtype: torch.dtype,
    convert: Callable[[str, Tensor], Tensor] | None = None,
    index: Mapping[str, Any] | None = None,
    source: str,
) -> None:
    """Fill all parameters of `module`, which may be sharded by FSDP, from `shards`.

    `convert` is called with key and value of each weight as it is read, on its device, and gives what is kept of it;
    `index` is the content of the index file beside the shards, which must agree with them; `source` names the weights
    in errors. Everything is checked before the first tensor is read. Raises ConfigurationError that names missing,
    unexpected and misshapen weights, and damaged files.
    """
    with ExitStack() as stack:
        files = {shard: stack.enter_context(_open(shard)) for shard in shards}
        if index is not None:
            _check_index(index, files)
        # In the order of the files, which are then read from front to back.
        holders = {key: file for file in files.values() for key in file.offset_keys()}
        check_fit(module, {key: file.get_slice(key).get_shape() for key, file in holders.items()}, source=source)
        targets = module.state_dict()
        keep = convert or (lambda _key, weight: weight)
        state = {key: keep(key, _read(file, key, targets[key], device, dtype)) for key, file in holders.items()}
    module.load_state_dict(state, strict=True, assign=True)
    finish(module)


def _open(shard: Path) -> Any:
    try:
        return safe_open(shard, framework="pt", device="cpu")
    except SafetensorError as error:
        raise ConfigurationError(f"{shard} cannot be read as weights ({error}); {_REMEDY}") from error


def _read(file: Any, key: str, target: Tensor, device: torch.device | str, dtype: torch.dtype) -> Tensor:
    """The tensor `key`, or this rank's shard of it; on the CPU in the file's own dtype it stays mapped."""
    if not isinstance(target, DTensor):
        whole: Tensor = file.get_tensor(key)
        return whole.to(device).to(dtype)
    num_rows = target.to_local().shape[0]
    # FSDP deals out rows like torch.chunk: all ranks get the same number until there are none left.
    rows_per_rank = -(-target.shape[0] // target.device_mesh.size())
    start = min(rows_per_rank * target.device_mesh.get_local_rank(), target.shape[0])
    local: Tensor = file.get_slice(key)[start : start + num_rows]
    return DTensor.from_local(
        local.to(device).to(dtype),
        target.device_mesh,
        target.placements,
        run_check=False,
        shape=target.shape,
        stride=target.stride(),
    )


def _check_index(index: Mapping[str, Any], files: Mapping[Path, Any]) -> None:
    """Compare the index with the shards: which file holds which key.

    How many bytes it states in all is a note of its writer, of no use to a loader: where it is wrong, a warning.
    """
    folder = next(iter(files)).parent
    stated = dict(index["weight_map"])
    found = {key: shard.name for shard, file in files.items() for key in file.keys()}  # noqa: SIM118  (not a mapping)
    wrong = sorted(key for key in stated.keys() | found.keys() if stated.get(key) != found.get(key))
    if wrong:
        key = wrong[0]
        raise ConfigurationError(
            f"the index in {folder} does not belong to its shards: {len(wrong)} weights are elsewhere, the first is "
            f"{key}: stated in {stated.get(key, 'no shard')}, found in {found.get(key, 'no shard')}; {_REMEDY}"
        )
    total_size = index.get("metadata", {}).get("total_size")
    size_bytes = sum(_weight_bytes(shard) for shard in files)
    if total_size is not None and total_size != size_bytes:
        get_logger().warning(
            "index_states_another_size", folder=str(folder), stated_bytes=total_size, found_bytes=size_bytes
        )


def _weight_bytes(shard: Path) -> int:
    with shard.open("rb") as stream:
        return shard.stat().st_size - 8 - int.from_bytes(stream.read(8), "little")
