"""The talking snapshot: a small trained checkpoint in the official layout, packed in one file of this package.

Its audio encoder, transformer and VAE draw a person whose mouth follows the speech; tests/samples/talker/ is the recipe
with which they were trained. Tokenizer and text encoder are those of the tiny snapshot, as the text has no effect.
"""

import hashlib
import json
import lzma
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, load_file, save, save_file
from torch import Tensor

from s2v_tasks.engine.loading import Snapshot
from s2v_tasks.engine.loading.snapshot import (
    AUDIO_ENCODER_FOLDER,
    CONFIG_FILE,
    TRANSFORMER_FILE,
    TRANSFORMER_INDEX_FILE,
    VAE_FILE,
)
from s2v_tasks.errors import ConfigurationError
from s2v_tasks.verification.tiny_snapshot import whole_folder, write_tiny_files

PACKED = Path(__file__).with_name("talker.safetensors.xz")
_SHA256 = "106a56497f7a5e3e2799e5fc81ca939b68c8470ddd6d50034232e4dac14893b9"
_TINY_SEED = 0
# The key of a packed tensor begins with the network that it belongs to.
_TRANSFORMER, _VAE, _AUDIO_ENCODER = "transformer/", "vae/", "audio_encoder/"


def write_talker_snapshot(path: Path) -> None:
    """Write the talking snapshot to the folder `path`, completely or not at all.

    A folder that already holds this snapshot stays as it is; any other folder with content, and a packed file that is
    not the expected one, raise ConfigurationError.
    """
    packed = PACKED.read_bytes()
    if (digest := hashlib.sha256(packed).hexdigest()) != _SHA256:
        raise ConfigurationError(f"{PACKED} has sha256 {digest}; expected {_SHA256}. Install the package again.")
    with whole_folder(path) as partial:
        unpack(packed, partial)


def pack(
    transformer: Mapping[str, Tensor], config: Mapping[str, Any], vae: Mapping[str, Tensor], audio: Mapping[str, Tensor]
) -> bytes:
    """Return the three networks, official keys, in bfloat16 in one compressed file; `config` is the transformer's."""
    parts = {_TRANSFORMER: transformer, _VAE: vae, _AUDIO_ENCODER: audio}
    tensors = {
        prefix + name: value.detach().to(torch.bfloat16).contiguous()
        for prefix, state in parts.items()
        for name, value in state.items()
    }
    return lzma.compress(save(tensors, {"config": json.dumps(config)}), preset=lzma.PRESET_EXTREME)


def unpack(packed: bytes, folder: Path) -> None:
    """Write the snapshot of a packed file into the empty `folder`."""
    content = lzma.decompress(packed)
    tensors = load(content)
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    write_tiny_files(folder, torch.Generator().manual_seed(_TINY_SEED))
    _write_transformer(_part(tensors, _TRANSFORMER), json.loads(header["__metadata__"]["config"]), folder)
    torch.save(_part(tensors, _VAE), folder / VAE_FILE)
    _write_audio_encoder(_part(tensors, _AUDIO_ENCODER), folder / AUDIO_ENCODER_FOLDER)
    Snapshot.open(folder)


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _write_transformer(state: dict[str, Tensor], config: dict[str, Any], folder: Path) -> None:
    for path in folder.glob("diffusion_pytorch_model*"):
        path.unlink()
    save_file(state, folder / TRANSFORMER_FILE)
    total_size = sum(value.nbytes for value in state.values())
    index = {"metadata": {"total_size": total_size}, "weight_map": dict.fromkeys(sorted(state), TRANSFORMER_FILE)}
    for name, content in ((TRANSFORMER_INDEX_FILE, index), (CONFIG_FILE, config)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _write_audio_encoder(state: dict[str, Tensor], folder: Path) -> None:
    """Replace the trained weights; other weights of the tiny snapshot (the classifier of letters) stay."""
    path = folder / "model.safetensors"
    whole = load_file(path)
    if unknown := sorted(set(state) - set(whole)):
        raise ConfigurationError(
            f"{PACKED} has {unknown[0]}, which is not a weight of the audio encoder. Pack it again."
        )
    whole = {name: value.to(torch.bfloat16).contiguous() for name, value in (whole | state).items()}
    save_file(whole, path, {"format": "pt"})
