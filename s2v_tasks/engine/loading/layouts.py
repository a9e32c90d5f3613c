"""Layouts of checkpoint files: map names of weights and scales of float8 weights to the official keys.

| layout | recognised by |
|---|---|
| official | its keys |
| node editor, one file | the prefix `model.diffusion_model.` or `diffusion_model.` before official keys |
| float8 with scales | `.scale_weight` (with the marker `scaled_fp8`) or `.weight_scale` beside a weight |
| Diffusers | `condition_embedder.time_proj.weight` |
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from s2v_tasks.engine.loading.files import check_file
from s2v_tasks.errors import ConfigurationError

_PREFIXES = ("model.diffusion_model.", "diffusion_model.")
_SCALES = {".scale_weight": ".weight", ".weight_scale": ".weight"}
# Keys that inference with float8 weights does not need.
_IGNORED = ("scaled_fp8", "spiece_model")
_IGNORED_SUFFIXES = (".scale_input", ".input_scale", ".comfy_quant")
_DIFFUSERS_MARK = "condition_embedder.time_proj.weight"
# Parts of official keys and of diffusers' names for Wan transformers, replaced in this order.
DIFFUSERS_NAMES = (
    ("time_embedding.0", "condition_embedder.time_embedder.linear_1"),
    ("time_embedding.2", "condition_embedder.time_embedder.linear_2"),
    ("text_embedding.0", "condition_embedder.text_embedder.linear_1"),
    ("text_embedding.2", "condition_embedder.text_embedder.linear_2"),
    ("time_projection.1", "condition_embedder.time_proj"),
    ("cross_attn", "attn2"),
    ("self_attn", "attn1"),
    (".o.", ".to_out.0."),
    (".q.", ".to_q."),
    (".k.", ".to_k."),
    (".v.", ".to_v."),
    ("head.modulation", "scale_shift_table"),
    ("head.head", "proj_out"),
    ("modulation", "scale_shift_table"),
    ("ffn.0", "ffn.net.0.proj"),
    ("ffn.2", "ffn.net.2"),
    ("norm3", "norm2"),
)


def diffusers_key(key: str) -> str:
    """Return the name of a weight in the Diffusers layout from its official key."""
    for official, diffusers in DIFFUSERS_NAMES:
        key = key.replace(official, diffusers)
    return key


@dataclass(frozen=True)
class Names:
    """Names of the weights of a file by official key, and of the scales of its float8 weights."""

    weights: dict[str, str]
    scales: dict[str, str]
    layout: str

    @classmethod
    def of(cls, keys: Iterable[str], expected: Iterable[str]) -> "Names":
        """Recognise the layout of a file with `keys`; `expected` are the official keys of the transformer."""
        present = [key for key in keys if key not in _IGNORED and not key.endswith(_IGNORED_SUFFIXES)]
        prefix = next((prefix for prefix in _PREFIXES if any(key.startswith(prefix) for key in present)), "")
        found = {key.removeprefix(prefix): key for key in present}
        layout = "single file with prefix" if prefix else "official keys"
        renamed: Mapping[str, str] = {}
        if _DIFFUSERS_MARK in found:
            renamed, layout = {diffusers_key(key): key for key in expected}, "Diffusers"
        weights: dict[str, str] = {}
        scales: dict[str, str] = {}
        for name, key in found.items():
            suffix = next((suffix for suffix in _SCALES if name.endswith(suffix)), None)
            if suffix is None:
                weights[renamed.get(name, name)] = key
            else:
                weight = name.removesuffix(suffix) + _SCALES[suffix]
                scales[renamed.get(weight, weight)] = key
        return cls(weights, scales, layout + (", float8 with scales" if scales else ""))

    def check_scales(self, shapes: Mapping[str, Sequence[int]], *, source: str) -> None:
        """Raise ConfigurationError unless each weight has one scale, or one for each row.

        `shapes` are those of all tensors, by their names in the file; `source` names the file in the error.
        """
        for key in self.scales.keys() & self.weights.keys():
            shape, num_scales = shapes[self.weights[key]], prod(shapes[self.scales[key]])
            if num_scales not in (1, *shape[:1]):
                raise ConfigurationError(
                    f"{source}: {self.scales[key]} has {num_scales} values for a weight of {list(shape)}; expected 1, "
                    "or one for each row. Scales of blocks are not supported: use the bf16 or the fp8_scaled file of "
                    "the same model"
                )


def apply_scale(rows: Tensor, scale: Tensor, first_row: int = 0) -> Tensor:
    """Return float8 weights, read as fp32, times their scale: one number, or one for each row."""
    scale = scale.float().to(rows.device)
    if scale.numel() == 1:
        return rows * scale.reshape(())
    own = scale.reshape(-1)[first_row : first_row + rows.shape[0]]
    return rows * own.view(-1, *[1] * (rows.dim() - 1))


def read_safetensors(path: Path, device: torch.device | str, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return all weights of a file; float8 weights with scales are converted to `dtype`.

    Raises ConfigurationError for a damaged file.
    """
    check_file(path)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            names = Names.of(file.keys(), ())
            names.check_scales({key: file.get_slice(key).get_shape() for key in file.keys()}, source=str(path))  # noqa: SIM118
            state = {}
            for name, key in names.weights.items():
                tensor = file.get_tensor(key)
                if name in names.scales:
                    tensor = apply_scale(tensor.float(), file.get_tensor(names.scales[name])).to(dtype)
                state[name] = tensor.to(device)
    except SafetensorError as error:
        raise ConfigurationError(f"{path} cannot be read as weights ({error}); download it again") from error
    return state


def invert(pairs: Iterable[tuple[str, str]], state: Mapping[str, Any], mark: str) -> dict[str, Any]:
    """Return `state` with official keys in place of those of a library; `pairs` are (official, library).

    If `mark`, a key of the library only, is missing, the keys stay unchanged.
    """
    if mark not in state:
        return dict(state)
    official = {library: own for own, library in pairs}
    return {official.get(key, key): value for key, value in state.items()}
