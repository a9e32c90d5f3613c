"""Read golden files, tensors and the transformer of a folder, compare tensors, and report the cases as rows."""

import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import safe_open
from torch import Tensor

from s2v_tasks.engine.distributed.mesh import BranchSplit, Layout, choose_layout, parallelize
from s2v_tasks.engine.models.config import S2VConfig
from s2v_tasks.engine.models.transformer import S2VTransformer
from s2v_tasks.errors import ConfigurationError

FORWARD_GATE = 2e-5
LOOP_GATE = 1e-4
SCHEDULER_GATE = 1e-5
ROPE_GATE = 1e-12
EXACT = 0.0
# A forward in bfloat16 against one in float32: relative L2 error, and the largest error. On a CPU 0.0045 to 0.0059 and
# 0.042 were measured.
BFLOAT16_RELATIVE_GATE = 0.01
BFLOAT16_GATE = 0.06
CASE_SUFFIXES = (".safetensors", ".json")  # notes in the same folder are not cases


@dataclass(frozen=True)
class Target:
    """The device and dtype of the networks: float32, or bfloat16 for the transformer."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32


CPU_FLOAT32 = Target()
OutputSize = Callable[[int, int, int], tuple[int, int]]


@dataclass(frozen=True)
class Goldens:
    """The files of a folder, and how their cases run: on all ranks, in `layout` or in the one that a render chooses.

    `output_size(height, width, area)` is the size rule of the planner, returning (height, width).
    """

    folder: Path
    output_size: OutputSize
    layout: Layout | None = None
    target: Target = CPU_FLOAT32

    def files(self, prefixes: tuple[str, ...] = ("",)) -> list[Path]:
        """Return the files whose names begin with one of these, in the order of their names."""
        files = (path for path in self.folder.iterdir() if path.is_file() and path.suffix in CASE_SUFFIXES)
        return sorted(path for path in files if path.name.startswith(prefixes))


@dataclass(frozen=True)
class CaseResult:
    """One row of the parity table; `max_abs_diff` is infinite if shapes differ or a case raised an error."""

    name: str
    max_abs_diff: float
    gate: float
    ok: bool
    note: str = ""


@dataclass(frozen=True)
class Golden:
    """A golden file in memory: its tensors and its metadata (every metadata value is JSON)."""

    name: str
    tensors: dict[str, Tensor]
    metadata: dict[str, Any]

    def __getitem__(self, key: str) -> Tensor:
        return self.tensors[key]

    def __contains__(self, key: str) -> bool:
        return key in self.tensors

    def with_prefix(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors whose key starts with `prefix`, with the prefix removed."""
        return {key.removeprefix(prefix): t for key, t in self.tensors.items() if key.startswith(prefix)}

    def stems(self, suffix: str) -> list[str]:
        """Return the keys that end with `suffix`, without it."""
        return sorted(key.removesuffix(suffix) for key in self.tensors if key.endswith(suffix))


def load_golden(path: Path, device: torch.device | str = "cpu") -> Golden:
    """Read a golden safetensors file to `device`."""
    with safe_open(path, framework="pt", device=str(device)) as file:
        metadata = {key: json.loads(value) for key, value in (file.metadata() or {}).items()}
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
    return Golden(name=path.stem, tensors=tensors, metadata=metadata)


def max_abs_diff(actual: Tensor, expected: Tensor) -> float:
    """Return the largest absolute difference in float64; infinite for unequal shapes and for anything not finite."""
    if actual.shape != expected.shape:
        return math.inf
    if expected.numel() == 0:
        return 0.0
    diff = (actual.detach().cpu().double() - expected.detach().cpu().double()).abs().max().item()
    return diff if math.isfinite(diff) else math.inf


def compare(name: str, actual: Tensor, expected: Tensor, gate: float) -> CaseResult:
    """Return one row for one tensor; a gate of `EXACT` demands equality."""
    diff = max_abs_diff(actual, expected)
    note = "" if actual.shape == expected.shape else f"shape {list(actual.shape)}, golden {list(expected.shape)}"
    return CaseResult(name, diff, gate, diff <= gate, note)


def compare_bfloat16(name: str, actual: Tensor, expected: Tensor) -> CaseResult:
    """Return one row for a tensor computed in bfloat16: its largest and its relative error have gates."""
    row = compare(name, actual, expected, BFLOAT16_GATE)
    if math.isinf(row.max_abs_diff):
        return row
    error = actual.detach().cpu().double() - expected.detach().cpu().double()
    relative = (error.norm() / expected.detach().cpu().double().norm()).item()
    note = f"relative L2 {relative:.4f}, at most {BFLOAT16_RELATIVE_GATE}"
    return replace(row, ok=row.ok and relative <= BFLOAT16_RELATIVE_GATE, note=note)


def compare_all(name: str, pairs: Iterable[tuple[str, Tensor, Tensor]], gate: float) -> CaseResult:
    """Return one row for many (key, actual, expected): the row of the worst, which the note names."""
    rows = [compare(key, actual, expected, gate) for key, actual, expected in pairs]
    if not rows:
        return failed(name, gate, "nothing to compare")
    worst = max(rows, key=lambda row: row.max_abs_diff)
    note = f"{len(rows)} tensors, worst {worst.name} {worst.note}".rstrip()
    return CaseResult(name, worst.max_abs_diff, gate, worst.ok, note)


def failed(name: str, gate: float, note: str) -> CaseResult:
    """Return a row for a case that could not be compared."""
    return CaseResult(name, math.inf, gate, ok=False, note=note)


def per_file(
    paths: Iterable[Path], run_file: Callable[[Path], Iterable[CaseResult]], gate: float
) -> Iterator[CaseResult]:
    """Yield the rows of each file; a file whose case raises gives a failing row, and the others still run."""
    for path in paths:
        try:
            with torch.inference_mode():
                rows = list(run_file(path))
        except Exception as error:  # noqa: BLE001 - a crash is this case's result, reported as a failing row
            rows = [failed(path.stem, gate, f"{type(error).__name__}: {error}")]
        yield from rows


def load_transformer(folder: Path, target: Target = CPU_FLOAT32) -> S2VTransformer:
    """Load the golden weights of `folder` into a transformer, strictly.

    Raises ConfigurationError when the folder has no such weights or when keys or shapes differ.
    """
    for path in sorted(folder.glob("dit_*.safetensors")):
        if is_weights(path):
            golden = load_golden(path)
            model = S2VTransformer(S2VConfig.from_json(golden.metadata["config"]))
            try:
                model.load_state_dict(golden.tensors)
            except RuntimeError as error:
                raise ConfigurationError(f"{path.name} does not fit its own config: {error}") from error
            return model.requires_grad_(requires_grad=False).to(target.device, target.dtype)
    raise ConfigurationError(f"{folder} has no dit_*.safetensors with a 'config' in its metadata; add the weights")


def is_weights(path: Path) -> bool:
    """Return True if a golden file holds the weights of a transformer."""
    with safe_open(path, framework="pt") as file:
        return "config" in (file.metadata() or {})


def num_ranks() -> int:
    """Return the number of ranks of the process group; 1 without a group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def share_among_ranks(model: S2VTransformer, layout: Layout | None, *, guided: bool) -> BranchSplit | None:
    """Let all ranks compute a case together, in `layout` or in the one that a render chooses.

    A case without guidance runs equally in both groups of a layout with cfg 2.
    """
    world_size = num_ranks()
    if world_size == 1 and layout is None:
        return None
    if layout is None:
        heads = model.config.num_heads
        layout = choose_layout(world_size, heads, guided=guided or heads % world_size != 0)
    return parallelize(model, layout, "cpu", guided=True)
