"""Load safetensors files straight into a module on the meta device, tensor by tensor.

A rank reads only its shard of each tensor, to its device, in its dtype or quantized. The ranks of a node share the page
cache. On a CPU, tensors that already have the dtype of the run stay mapped to their files.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from s2v_tasks.engine.acceleration.fp8 import Float8Weights
from s2v_tasks.engine.loading.adapters import AdapterMerge
from s2v_tasks.engine.loading.files import check_file
from s2v_tasks.engine.loading.layouts import Names, apply_scale
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


@dataclass(frozen=True)
class Conversion:
    """Converts weights from the form of their files to that of the run, in which they have `dtype`.

    `merge` adds the changes of adapters to a weight, in fp32, before it gets `dtype`. Then `convert` gets the key and
    value of each weight, on its device, and returns the value to keep. Float8 weights with scales are passed to
    `float8` unchanged, unless an adapter changes them; without `float8` they get `dtype`.
    """

    dtype: torch.dtype
    convert: Callable[[str, Tensor], Tensor] | None = None
    float8: Float8Weights | None = None
    merge: AdapterMerge | None = None


def load_shards(
    module: nn.Module,
    shards: Sequence[Path],
    conversion: Conversion,
    *,
    device: torch.device | str,
    index: Mapping[str, Any] | None = None,
    source: str,
    num_threads: int | None = None,
) -> None:
    """Fill all parameters of `module`, which may be sharded by FSDP, from `shards`.

    `index` is the content of the index file of the shards, which must match them; `source` names the weights in errors;
    `num_threads` threads read at a time (None: chosen for this machine). Everything is checked before the first tensor
    is read. Raises ConfigurationError that names missing, unexpected and misshapen weights, and damaged files;
    TransientError for a file that cannot be read.
    """
    with _checked(module, shards, conversion, index, source) as weights:
        state = weights.read(torch.device(device), num_threads or NUM_THREADS)
    module.load_state_dict(state, strict=True, assign=True)
    finish(module)


def check_shards(
    module: nn.Module, shards: Sequence[Path], *, index: Mapping[str, Any] | None = None, source: str
) -> None:
    """Raise the errors of `load_shards` that the headers of the files show; reads no tensor."""
    with _checked(module, shards, Conversion(torch.float32), index, source):
        return


@contextmanager
def _checked(
    module: nn.Module, shards: Sequence[Path], conversion: Conversion, index: Mapping[str, Any] | None, source: str
) -> Iterator["_StoredWeights"]:
    """Open the shards and compare their headers with the index and the module."""
    with ExitStack() as stack:
        files = {shard: stack.enter_context(_open(shard)) for shard in shards}
        if index is not None:
            _check_index(index, files)
        weights = _StoredWeights(files, module.state_dict(), conversion)
        check_fit(module, weights.shapes, source=source)
        weights.check_scales(source)
        yield weights


class _StoredWeights:
    """The weights of open files for a module whose state dict is `targets`."""

    def __init__(self, files: Mapping[Path, Any], targets: Mapping[str, Tensor], conversion: Conversion) -> None:
        self._files, self._targets, self._conversion = files, targets, conversion
        # In the order of the files, which are then read from front to back.
        self._parts = {name: part for shard in files for name, part in _parts(shard).items()}
        self._names = Names.of(self._parts, targets)
        self._changed = conversion.merge.keys if conversion.merge else frozenset()  # by an adapter

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of each weight by its official key."""
        return {key: self._parts[name].shape for key, name in self._names.weights.items()}

    def check_scales(self, source: str) -> None:
        """Raise ConfigurationError for scales of another form than `apply_scale` takes."""
        self._names.check_scales({name: part.shape for name, part in self._parts.items()}, source=source)

    def read(self, device: torch.device, num_threads: int) -> dict[str, Tensor]:
        """Return the weights in the form of the run; on a CPU, those that have it already stay mapped to files."""
        mapped = [key for key in self._names.weights if device.type == "cpu" and self._is_in_form(key)]
        state = {key: self._converted(key, self._tensor(self._names.weights[key])) for key in mapped}
        parts = {key: self._own_part(key) for key in self._names.weights if key not in state}
        with closing(read_parts(parts.values(), device, self._conversion.dtype, num_threads=num_threads)) as tensors:
            state |= {key: self._finished(key, rows) for key, rows in zip(parts, tensors, strict=True)}
        return state

    def _part(self, key: str) -> Part:
        return self._parts[self._names.weights[key]]

    def _tensor(self, name: str) -> Tensor:
        tensor: Tensor = self._files[self._parts[name].path].get_tensor(name)
        return tensor

    def _is_in_form(self, key: str) -> bool:
        """Return True if a weight needs neither a computation nor another dtype, and belongs to this rank alone."""
        return (
            self._part(key).dtype == self._conversion.dtype
            and key not in self._names.scales
            and key not in self._changed
            and not isinstance(self._targets[key], DTensor)
        )

    def _stays_float8(self, key: str) -> bool:
        """Return True for a float8 weight whose values and scale are kept as they are in the file."""
        return (
            self._conversion.float8 is not None
            and key in self._conversion.float8.keys
            and key in self._names.scales
            and key not in self._changed
            and self._part(key).dtype == torch.float8_e4m3fn
        )

    def _own_part(self, key: str) -> Part:
        """Return what this rank reads of a weight, and the dtype in which `_finished` gets it."""
        part = _own_rows(self._part(key), self._targets[key])
        if self._stays_float8(key):
            return replace(part, read_as=part.dtype)
        return replace(part, read_as=torch.float32) if key in self._names.scales or key in self._changed else part

    def _finished(self, key: str, rows: Tensor) -> Tensor:
        """Return the rows of a weight that this rank has read in the form of the run."""
        conversion, target = self._conversion, self._targets[key]
        if key in self._names.scales:
            scale = self._tensor(self._names.scales[key])
            if conversion.float8 and self._stays_float8(key):
                return conversion.float8.from_file(rows, scale)
            rows = apply_scale(rows, scale, _first_row(target))
        if conversion.merge and key in self._changed:
            rows = conversion.merge(key, rows, _first_row(target))
        return self._converted(key, _like(target, rows.to(conversion.dtype)))

    def _converted(self, key: str, weight: Tensor) -> Tensor:
        return self._conversion.convert(key, weight) if self._conversion.convert else weight


def _open(shard: Path) -> Any:
    check_file(shard)
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
