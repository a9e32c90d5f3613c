"""Adapters (LoRA): changes of weights that are merged tensor by tensor while the transformer is loaded.

A weight W becomes W + strength * (alpha / rank) * up @ down, in fp32, before it is cast, quantized or sharded, so that
a render costs nothing extra. Safetensors files with these names are accepted (MODULE: a module of the transformer):

| writer | keys |
|---|---|
| node editors | `diffusion_model.MODULE.lora_down.weight`, `.lora_up.weight`, `.alpha`, `.diff`, `.diff_b` |
| PEFT | `base_model.model.MODULE.lora_A.weight`, `.lora_B.weight`, also without the prefix |
| kohya | `lora_unet_MODULE.lora_down.weight`, ..., with underscores for the dots of MODULE |
| diffusers | `transformer.MODULE.lora_A.weight`, `.lora_B.weight`, with the diffusers name of MODULE |
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from s2v_tasks.engine.loading.layouts import diffusers_key
from s2v_tasks.errors import ConfigurationError

MAX_ADAPTER_BYTES = 4 << 30
_PARTS = {
    ".lora_down.weight": "down",
    ".lora_A.weight": "down",
    ".lora_A.default.weight": "down",
    ".lora_up.weight": "up",
    ".lora_B.weight": "up",
    ".lora_B.default.weight": "up",
    ".alpha": "alpha",
    ".diff": "diff",
    ".diff_b": "diff_b",
}
_PREFIXES = ("base_model.model.", "diffusion_model.", "model.diffusion_model.", "transformer.")
_FLAT_PREFIX = "lora_unet_"
_PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x04")
_MAX_NAMES = 3


@dataclass(frozen=True)
class Adapter:
    """An adapter to merge; `alpha` is used if the file has none. The scale is alpha / rank, or 1 without alpha."""

    name: str
    path: Path
    strength: float
    sha256: str
    alpha: float | None = None
    least_matched: float = 0.9  # share of its modules that the transformer must have

    def check_file(self) -> None:
        """Raise ConfigurationError unless the file exists and has an accepted size, an accepted kind and its digest."""
        if not self.path.is_file():
            raise ConfigurationError(
                f"adapter {self.name}: {self.path} is not a file; correct its path in adapters.yaml"
            )
        size_bytes = self.path.stat().st_size
        if size_bytes > MAX_ADAPTER_BYTES:
            raise ConfigurationError(
                f"adapter {self.name}: {self.path} has {size_bytes} bytes; expected at most {MAX_ADAPTER_BYTES}. "
                "Use an adapter, not a whole checkpoint"
            )
        with self.path.open("rb") as stream:
            if stream.read(4).startswith(_PICKLE_STARTS):
                raise ConfigurationError(
                    f"adapter {self.name}: {self.path} is a pickle file, which can run code; expected safetensors. "
                    "Convert it on an isolated machine"
                )
            stream.seek(0)
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        if digest != self.sha256:
            raise ConfigurationError(
                f"adapter {self.name}: {self.path} has sha256 {digest[:12]}...; expected {self.sha256[:12]}..., as in "
                "adapters.yaml. Download it again or correct the entry"
            )


@dataclass(frozen=True)
class AdapterReport:
    """Modules of an adapter that the transformer has, does not have, or has in another shape."""

    name: str
    matched: tuple[str, ...]
    unmatched: tuple[str, ...]
    mismatched: tuple[str, ...]

    @property
    def num_modules(self) -> int:
        """Return the number of modules of the adapter."""
        return len(self.matched) + len(self.unmatched) + len(self.mismatched)


@dataclass
class _Module:
    """Tensors of one module in an adapter file: the key of each part (`down`, `up`, `alpha` and others)."""

    keys: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Change:
    """A change of one weight; `read` reads a tensor of the file."""

    adapter: Adapter
    read: Callable[[str], Tensor]
    factors: tuple[str, ...]  # keys of up and down, or of a whole difference
    scale: float

    def add_to(self, rows: Tensor, first_row: int) -> None:
        """Add the change to `rows` of the weight, fp32, from `first_row` on."""
        last_row = first_row + rows.shape[0] if rows.dim() else None
        first, *down = (self._factor(key) for key in self.factors)
        own = first[first_row:last_row] if rows.dim() else first
        if down:
            product = own.flatten(1).to(rows.device) @ down[0].flatten(1).to(rows.device)
            rows += self.scale * product.view(rows.shape)
        else:
            rows += self.scale * own.to(rows.device)

    def _factor(self, key: str) -> Tensor:
        tensor = self.read(key).float()
        if not torch.isfinite(tensor).all():
            raise ConfigurationError(
                f"adapter {self.adapter.name}: {key} has values that are not finite; download {self.adapter.path} again"
            )
        return tensor


class AdapterMerge:
    """The merge of `adapters` into a transformer whose weights have `shapes`; several adapters add up.

    The files stay open until `close`. Raises ConfigurationError for an unusable file, and if the transformer has too
    few of the modules of an adapter.
    """

    def __init__(self, adapters: Sequence[Adapter], shapes: Mapping[str, Sequence[int]]) -> None:
        self._changes: dict[str, list[_Change]] = {}
        self._shapes = {key: tuple(shape) for key, shape in shapes.items()}
        names = {key.rpartition(".")[0] for key in shapes} | set(shapes)
        of_diffusers = {diffusers_key(key).rpartition(".")[0]: key.rpartition(".")[0] for key in shapes}
        self._modules = of_diffusers | {name.replace(".", "_"): name for name in names} | {name: name for name in names}
        self._files = ExitStack()
        try:
            self.reports = tuple(self._add(adapter) for adapter in adapters if adapter.strength)
        except BaseException:
            self.close()
            raise

    @property
    def keys(self) -> frozenset[str]:
        """Return the keys of the weights that change."""
        return frozenset(self._changes)

    def __call__(self, key: str, rows: Tensor, first_row: int = 0) -> Tensor:
        """Return `rows` of a weight, fp32, from `first_row` on, with the changes of all adapters."""
        merged = rows.clone()
        for change in self._changes.get(key, ()):
            change.add_to(merged, first_row)
        return merged

    def close(self) -> None:
        """Close the files."""
        self._files.close()

    def _add(self, adapter: Adapter) -> AdapterReport:
        file = self._open(adapter)
        matched, unmatched, mismatched = [], [], []
        for name, module in _modules(file.keys()).items():
            target = self._modules.get(name)
            changes = {} if target is None else dict(self._changes_of(adapter, file, target, module))
            if not changes:
                unmatched.append(name)
            elif problems := [text for text in map(self._problem, *zip(*_shapes(file, changes), strict=True)) if text]:
                mismatched += problems[:1]
            else:
                matched.append(name)
                for key, change in changes.items():
                    self._changes.setdefault(key, []).append(change)
        report = AdapterReport(adapter.name, tuple(matched), tuple(unmatched), tuple(mismatched))
        _check_share(adapter, report)
        return report

    def _open(self, adapter: Adapter) -> Any:
        try:
            return self._files.enter_context(safe_open(adapter.path, framework="pt", device="cpu"))
        except SafetensorError as error:
            raise ConfigurationError(
                f"adapter {adapter.name}: {adapter.path} cannot be read as safetensors ({error}); download it again"
            ) from error

    def _changes_of(self, adapter: Adapter, file: Any, target: str, module: _Module) -> Iterator[tuple[str, _Change]]:
        """Yield the changes of a module by the key of the weight that changes."""
        keys = module.keys
        weight = target if target in self._shapes else f"{target}.weight"
        if "up" in keys and "down" in keys and weight in self._shapes:
            rank = file.get_slice(keys["down"]).get_shape()[0]
            alpha = float(file.get_tensor(keys["alpha"])) if "alpha" in keys else adapter.alpha
            scale = adapter.strength * (1.0 if alpha is None else alpha / rank)
            yield weight, _Change(adapter, file.get_tensor, (keys["up"], keys["down"]), scale)
        elif "diff" in keys and weight in self._shapes:
            yield weight, _Change(adapter, file.get_tensor, (keys["diff"],), adapter.strength)
        if "diff_b" in keys and f"{target}.bias" in self._shapes:
            yield f"{target}.bias", _Change(adapter, file.get_tensor, (keys["diff_b"],), adapter.strength)

    def _problem(self, key: str, shapes: tuple[tuple[int, ...], ...]) -> str | None:
        """Return the error in the shapes of a change; None if they fit the weight."""
        expected, (first, *down) = self._shapes[key], shapes
        if down and first[1] != down[0][0]:
            return f"{key} (up of rank {first[1]}, down of rank {down[0][0]})"
        fits = first == expected
        if down:
            fits = first[0] == expected[0] and prod(down[0][1:]) == prod(expected[1:])
        found = [first[0], *down[0][1:]] if down else list(first)
        return None if fits else f"{key} ({found} instead of {list(expected)})"


def _modules(keys: Sequence[str]) -> dict[str, _Module]:
    """Return the modules of an adapter file; a key of an unknown kind becomes a separate module."""
    modules: dict[str, _Module] = {}
    for key in keys:
        suffix = next((suffix for suffix in _PARTS if key.endswith(suffix)), "")
        name = key.removesuffix(suffix).removeprefix(_FLAT_PREFIX)
        for prefix in _PREFIXES:
            name = name.removeprefix(prefix)
        modules.setdefault(name, _Module()).keys[_PARTS.get(suffix, key)] = key
    return modules


def _shapes(file: Any, changes: Mapping[str, _Change]) -> list[tuple[str, tuple[tuple[int, ...], ...]]]:
    return [
        (key, tuple(tuple(file.get_slice(factor).get_shape()) for factor in change.factors))
        for key, change in changes.items()
    ]


def _check_share(adapter: Adapter, report: AdapterReport) -> None:
    if report.num_modules and len(report.matched) >= adapter.least_matched * report.num_modules:
        return
    problems = [
        f"{len(names)} {problem} such as {', '.join(names[:_MAX_NAMES])}"
        for problem, names in (("are unknown", report.unmatched), ("have another shape", report.mismatched))
        if names
    ]
    raise ConfigurationError(
        f"adapter {adapter.name}: {len(report.matched)} of its {report.num_modules} modules fit the transformer, "
        f"expected {adapter.least_matched:.0%}; {'; '.join(problems)}. Use an adapter of this model, or lower "
        "least_matched in adapters.yaml"
    )
