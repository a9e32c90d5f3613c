"""Load safetensors files straight into a module on the meta device, tensor by tensor.

A rank reads only its shard of each tensor, to its device, in its dtype or quantized. The ranks of a node share the page
cache. On a CPU, tensors that already have the dtype of the run stay mapped to their files.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from s2v_tasks.engine.acceleration.fp8 import Float8Weights
from s2v_tasks.engine.loading.adapters import AdapterMerge
from s2v_tasks.engine.loading.layouts import Names, apply_scale, refuse_gguf
from s2v_tasks.engine.loading.reading import NUM_THREADS, Part, read_parts
from s2v_tasks.engine.loading.weights import check_fit, finish
from s2v_tasks.errors import ConfigurationError
from s2v_tasks.log import get_logger

_REMEDY = "download it again"
_LENGTH_BYTES = 8  # of the header's length, the first bytes of a file
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "U8": torch.uint8,  # of markers, which are left out
}


def load_shards(
    module: nn.Module,
    shards: Sequence[Path],
    *,
    device: torch.device | str,
    dtype: torch.dtype,
    convert: Callable[[str, Tensor], Tensor] | None = None,
    float8: Float8Weights | None = None,
    merge: AdapterMerge | None = None,
    index: Mapping[str, Any] | None = None,
    source: str,
    num_threads: int | None = None,
) -> None:
    """Fill all parameters of `module`, which may be sharded by FSDP, from `shards`.

    `merge` adds the changes of adapters to a weight, in fp32, before it gets its dtype. Then `convert` gets the key and
    value of each weight, on its device, and returns the value to keep. Float8 weights with scales are passed to
    `float8` unchanged, unless an adapter changes them; without `float8` they get `dtype`. `index` is the content of the
    index file of the shards, which must match them; `source` names the weights in errors; `num_threads` threads read at
    a time (None: chosen for this machine). Everything is checked before the first tensor is read. Raises
    ConfigurationError that names missing, unexpected and misshapen weights, and damaged files; TransientError for a
    file that cannot be read.
    """
    keep = convert or (lambda _key, weight: weight)
    with ExitStack() as stack:
        files = {shard: stack.enter_context(_open(shard)) for shard in shards}
        if index is not None:
            _check_index(index, files)
        # In the order of the files, which are then read from front to back.
        in_files = {key: part for shard in shards for key, part in _parts(shard).items()}
        names = Names.of(in_files, module.state_dict())
        stored = {key: in_files[name] for key, name in names.weights.items()}
        check_fit(module, {key: part.shape for key, part in stored.items()}, source=source)
        targets, device = module.state_dict(), torch.device(device)

        changed = frozenset() if merge is None else merge.keys
        # Float8 weights that stay unchanged.
        kept = {
            key
            for key in names.scales.keys() - changed
            if float8 and key in float8.keys and stored[key].dtype == torch.float8_e4m3fn
        }

        def finished(key: str, rows: Tensor) -> Tensor:
            first_row = _first_row(targets[key])
            if key in names.scales:
                name = names.scales[key]
                scale = files[in_files[name].path].get_tensor(name)
                if float8 and key in kept:
                    return float8.from_file(rows, scale)
                rows = apply_scale(rows, scale, first_row)
            if merge and key in changed:
                rows = merge(key, rows, first_row)
            return keep(key, _like(targets[key], rows.to(dtype)))

        state: dict[str, Tensor] = {}
        wanted: dict[str, Part] = {}
        for key, part in stored.items():
            in_float32 = key in names.scales or key in changed
            if (
                device.type == "cpu"
                and part.dtype == dtype
                and not in_float32
                and not isinstance(targets[key], DTensor)
            ):
                state[key] = keep(key, files[part.path].get_tensor(names.weights[key]))
            else:
                read_as = part.dtype if key in kept else torch.float32 if in_float32 else None
                wanted[key] = replace(_own_rows(part, targets[key]), read_as=read_as)
        with closing(read_parts(wanted.values(), device, dtype, num_threads=num_threads or NUM_THREADS)) as tensors:
            state |= {key: finished(key, rows) for key, rows in zip(wanted, tensors, strict=True)}
    module.load_state_dict(state, strict=True, assign=True)
    finish(module)


def _open(shard: Path) -> Any:
    refuse_gguf(shard)
    try:
        return safe_open(shard, framework="pt", device="cpu")
    except SafetensorError as error:
        raise ConfigurationError(f"{shard} cannot be read as weights ({error}); {_REMEDY}") from error


def _parts(shard: Path) -> dict[str, Part]:
    """Return the position of each tensor in the file, in the order of the file. `_open` has checked them."""
    with shard.open("rb") as stream:
        header_bytes = int.from_bytes(stream.read(_LENGTH_BYTES), "little")
        header: dict[str, Any] = json.loads(stream.read(header_bytes))
    header.pop("__metadata__", None)
    if unknown := sorted({entry["dtype"] for entry in header.values()} - _DTYPES.keys()):
        raise ConfigurationError(f"{shard} has weights of type {unknown[0]}; expected one of {', '.join(_DTYPES)}")
    data = _LENGTH_BYTES + header_bytes
    parts = {
        key: Part(shard, data + entry["data_offsets"][0], _DTYPES[entry["dtype"]], tuple(entry["shape"]))
        for key, entry in header.items()
    }
    return dict(sorted(parts.items(), key=lambda item: item[1].offset))


def _own_rows(part: Part, target: Tensor) -> Part:
    """Return the part of the file that this rank reads: the rows of its shard, or the whole tensor without shards."""
    if not isinstance(target, DTensor):
        return part
    row_bytes = part.size_bytes // part.shape[0]
    shape = (target.to_local().shape[0], *part.shape[1:])
    return replace(part, offset=part.offset + _first_row(target) * row_bytes, shape=shape)


def _first_row(target: Tensor) -> int:
    """Return the first row of this rank's shard; 0 without shards."""
    if not isinstance(target, DTensor):
        return 0
    # FSDP divides rows like torch.chunk: all ranks get the same number until no rows are left.
    rows_per_rank = -(-target.shape[0] // target.device_mesh.size())
    return min(rows_per_rank * target.device_mesh.get_local_rank(), target.shape[0])


def _like(target: Tensor, own: Tensor) -> Tensor:
    """Return `own` as a tensor of the type of `target`: itself, or this rank's shard of a distributed tensor."""
    if not isinstance(target, DTensor):
        return own
    return DTensor.from_local(
        own, target.device_mesh, target.placements, run_check=False, shape=target.shape, stride=target.stride()
    )


def _check_index(index: Mapping[str, Any], files: Mapping[Path, Any]) -> None:
    """Compare the index with the shards: which file holds which key.

    The loader does not use the total size that the index states: a wrong one is only a warning.
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
    size_bytes = sum(part.size_bytes for shard in files for part in _parts(shard).values())
    if total_size is not None and total_size != size_bytes:
        get_logger().warning(
            "index_states_another_size", folder=str(folder), stated_bytes=total_size, found_bytes=size_bytes
        )
