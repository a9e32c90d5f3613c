"""Describe a file or folder of weights: its kind, its missing files, and the command that completes it."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from s2v_tasks.engine.loading.layouts import Names, refuse_gguf
from s2v_tasks.engine.loading.snapshot import TRANSFORMER_INDEX_FILE, Snapshot
from s2v_tasks.errors import ConfigurationError

_REPOSITORY = "Wan-AI/Wan2.2-S2V-14B"
_MAX_HEADER_BYTES = 100 << 20
_KINDS = (
    ("transformer of Wan2.2-S2V", ("casual_audio_encoder.weights",)),
    ("Wan transformer without audio, not of this model", ("blocks.0.self_attn.q.weight", "blocks.0.attn1.to_q.weight")),
    ("Wan 2.1 VAE, official keys", ("encoder.conv1.weight",)),
    ("Wan 2.1 VAE, Diffusers keys", ("encoder.conv_in.weight",)),
    ("umT5 text encoder, official keys", ("token_embedding.weight",)),
    ("umT5 text encoder, transformers keys", ("shared.weight",)),
    ("wav2vec2 audio encoder", ("wav2vec2.feature_projection.projection.weight",)),
)


def inspect(path: Path) -> list[str]:
    """Return sentences about a file or folder. Raises ConfigurationError if it is unusable."""
    if path.is_dir():
        return [*_folder(path)]
    if not path.is_file():
        raise ConfigurationError(f"{path} does not exist; expected a file or folder of weights")
    refuse_gguf(path)
    return [_file(path)]


def _folder(path: Path) -> Iterator[str]:
    snapshot = Snapshot(path)
    files = {
        "transformer": snapshot.transformer_shards(),
        "text encoder": [snapshot.text_encoder_path],
        "VAE": [snapshot.vae_path],
        "audio encoder": [snapshot.audio_encoder_path],
    }
    yield f"{path} is a folder of weights."
    for component, paths in files.items():
        present = [file for file in paths if file.is_file()]
        if not present:
            yield f"{component}: missing"
            continue
        for file in present:
            yield f"{component}: {_file(file)}"
    missing = snapshot.missing_files()
    if missing:
        yield f"missing: {', '.join(missing)}"
        yield f"complete it with: hf download {_REPOSITORY} {' '.join(missing)} --local-dir {path}"
        if TRANSFORMER_INDEX_FILE in missing:
            yield "then inspect it again: the index names the shards of the transformer"
    else:
        yield "nothing is missing; use it with S2V_SNAPSHOT_PATH"


def _file(path: Path) -> str:
    refuse_gguf(path)
    keys, dtypes, num_values = _pth(path) if path.suffix in (".pth", ".bin") else _safetensors(path)
    numbers = f"{len(keys)} tensors, {num_values:,} numbers, {', '.join(f'{n} x {name}' for name, n in dtypes.items())}"
    if any(".lora_" in key for key in keys):
        return f"{path.name} is an adapter (LoRA), {numbers}; add it to config/adapters.yaml"
    names = Names.of(keys, ())
    for kind, marks in _KINDS:
        if any(mark in names.weights for mark in marks):
            layout = f", {names.layout}" if "transformer" in kind else ""
            return f"{path.name} is a {kind}{layout}, {numbers}"
    return f"{path.name} holds weights of an unknown kind, {numbers}; its first key is {min(keys, default='none')}"


def _safetensors(path: Path) -> tuple[list[str], Counter[str], int]:
    with path.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        try:
            header: dict[str, Any] = json.loads(stream.read(size)) if size <= _MAX_HEADER_BYTES else {}
        except ValueError:
            header = {}
    header.pop("__metadata__", None)
    if not header or not all(isinstance(entry, dict) and "shape" in entry for entry in header.values()):
        raise ConfigurationError(f"{path} is not a safetensors file; download it again")
    numbers = 0
    for entry in header.values():
        product = 1
        for side in entry["shape"]:
            product *= side
        numbers += product
    return list(header), Counter(entry["dtype"] for entry in header.values()), numbers


def _pth(path: Path) -> tuple[list[str], Counter[str], int]:
    from s2v_tasks.engine.loading.weights import read_pth

    state = read_pth(path, "cpu")
    dtypes = Counter(str(value.dtype).removeprefix("torch.") for value in state.values())
    return list(state), dtypes, sum(value.numel() for value in state.values())
