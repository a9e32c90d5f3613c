"""Describe a file or folder of weights: its kind, its missing files, and the command that completes it."""

from collections import Counter
from collections.abc import Iterator, Sequence
from math import prod
from pathlib import Path

from s2v_tasks.engine.loading.files import check_file, fault_of, safetensors_header
from s2v_tasks.engine.loading.folders import advice_for
from s2v_tasks.engine.loading.layouts import Names
from s2v_tasks.engine.loading.snapshot import TRANSFORMER_INDEX_FILE, Snapshot
from s2v_tasks.errors import ConfigurationError

_REPOSITORY = "Wan-AI/Wan2.2-S2V-14B"
_WEIGHTS = (".safetensors", ".pth", ".bin", ".gguf")
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
    return [f"{path.name} is {_kind([path])}"]


def _folder(path: Path) -> Iterator[str]:
    snapshot = Snapshot(path)
    files = {
        "transformer": snapshot.transformer_shards(),
        "text encoder": [snapshot.text_encoder_path],
        "VAE": [snapshot.vae_path],
        "audio encoder": [snapshot.audio_encoder_path],
    }
    advice = None if snapshot.config_path.exists() else advice_for(path)
    if advice:
        yield f"{path} is not the folder of a snapshot; {advice}"
        return
    yield f"{path} is a folder of weights."
    for component, expected in files.items():
        yield f"{component}: {_component(expected)}"
    yield from _others(path, {file.resolve() for expected in files.values() for file in expected})
    yield from _verdict(snapshot)


def _component(expected: Sequence[Path]) -> str:
    """Return the kind of the weights of a component, or what keeps them from being read."""
    present = [file for file in expected if file.is_file()]
    whole = [file for file in present if not fault_of(file)]
    if len(expected) > 1:
        return f"{len(whole)} of {len(expected)} files are whole" + (
            f"; together they are {_kind(whole)}" if len(whole) == len(expected) else ""
        )
    if whole:
        return f"{whole[0].name} is {_kind(whole)}"
    return "damaged" if present else "missing"


def _verdict(snapshot: Snapshot) -> Iterator[str]:
    """Yield what keeps the folder from being used, with the command that completes it."""
    missing, damaged = snapshot.missing_files(), snapshot.damaged_files()
    yield from (f"damaged: {name} {fault}" for name, fault in damaged.items())
    try:
        if snapshot.config_path.is_file():
            snapshot.config()
        if not missing and not damaged:
            snapshot.check_transformer()
            yield "nothing is missing; use it with S2V_SNAPSHOT_PATH"
    except ConfigurationError as error:
        yield f"not usable: {error}"
        return
    if missing:
        yield f"missing: {', '.join(missing)}"
        yield f"complete it with: hf download {_REPOSITORY} {' '.join(missing)} --local-dir {snapshot.path}"
    if TRANSFORMER_INDEX_FILE in missing:
        yield "then inspect it again: the index names the shards of the transformer"


def _others(path: Path, used: set[Path]) -> Iterator[str]:
    """Yield the kind of each file of weights at the top of a folder that is not part of the snapshot."""
    for file in sorted(path.iterdir()):
        if file.suffix not in _WEIGHTS or not file.is_file() or file.resolve() in used:
            continue
        if fault := fault_of(file):
            yield f"not used: {file.name} {fault}"
        else:
            yield f"not used: {file.name} is {_kind([file])}; to use it, name it by `files` in config/models.yaml"


def _kind(paths: Sequence[Path]) -> str:
    """Return the kind of the weights that the files hold together, with an article."""
    keys: list[str] = []
    dtypes: Counter[str] = Counter()
    num_values = 0
    for path in paths:
        check_file(path)
        if path.suffix not in _WEIGHTS:
            raise ConfigurationError(f"{path} is no file of weights; expected a folder, or {', '.join(_WEIGHTS)}")
        own_keys, own_dtypes, own_values = _pth(path) if path.suffix in (".pth", ".bin") else _safetensors(path)
        keys, dtypes, num_values = keys + own_keys, dtypes + own_dtypes, num_values + own_values
    numbers = f"{len(keys)} tensors, {num_values:,} numbers, {', '.join(f'{n} x {name}' for name, n in dtypes.items())}"
    if any(".lora_" in key for key in keys):
        return f"an adapter (LoRA), {numbers}; add it to config/adapters.yaml"
    names = Names.of(keys, ())
    for kind, marks in _KINDS:
        if any(mark in names.weights for mark in marks):
            layout = f", {names.layout}" if "transformer" in kind else ""
            return f"a {kind}{layout}, {numbers}"
    return f"of an unknown kind, {numbers}; its first key is {min(keys, default='none')}"


def _safetensors(path: Path) -> tuple[list[str], Counter[str], int]:
    header = safetensors_header(path) or {}
    numbers = sum(prod(entry["shape"]) for entry in header.values())
    return list(header), Counter(entry["dtype"] for entry in header.values()), numbers


def _pth(path: Path) -> tuple[list[str], Counter[str], int]:
    from s2v_tasks.engine.loading.weights import read_pth

    state = read_pth(path, "cpu")
    dtypes = Counter(str(value.dtype).removeprefix("torch.") for value in state.values())
    return list(state), dtypes, sum(value.numel() for value in state.values())
