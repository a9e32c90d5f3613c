"""Write a snapshot in the official layout from the checkpoints of all stages: `python export.py DIR --from OUT`.

Tokenizer and text encoder are those of the tiny snapshot: random, as the transformer does not use the text.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import audio_stage
import fast_vae
import torch
import trainable_transformer
from films import latent_scale
from safetensors.torch import load_file, save_file
from torch import Tensor
from training import averaged_weights

from s2v_tasks.engine.encoders.vae import LATENT_MEAN, LATENT_STD, key_pairs
from s2v_tasks.engine.loading.snapshot import (
    AUDIO_ENCODER_FOLDER,
    CONFIG_FILE,
    TRANSFORMER_FILE,
    TRANSFORMER_INDEX_FILE,
    VAE_FILE,
    Snapshot,
)
from s2v_tasks.verification.tiny_snapshot import write_tiny_snapshot

_SEED = 0


def vae_state(vae: Any, mean: Tensor, std: Tensor) -> dict[str, Tensor]:
    """Return the VAE with official keys, scaled so that the engine's fixed mean and deviation give normalised latents.

    `mean` and `std` are those of the latents that `fast_vae.encode` gives.
    """
    library = {name: value.detach().clone() for name, value in vae.state_dict().items()}
    gain, offset = torch.tensor(LATENT_STD) / std, torch.tensor(LATENT_MEAN)
    n = fast_vae.CHANNELS
    encoder_weight, encoder_bias = library["quant_conv.weight"], library["quant_conv.bias"]
    encoder_weight[:n] *= gain.view(-1, 1, 1, 1, 1)
    encoder_bias[:n] = (encoder_bias[:n] - mean) * gain + offset
    decoder_weight = library["post_quant_conv.weight"]
    # z = (z' - offset) / gain + mean
    library["post_quant_conv.bias"] += decoder_weight.flatten(1) @ (mean - offset / gain)
    library["post_quant_conv.weight"] = decoder_weight / gain.view(1, -1, 1, 1, 1)
    return {official: library[name].contiguous() for official, name in key_pairs()}


def export(source: Path, target: Path) -> None:
    """Write the snapshot to the new folder `target`."""
    write_tiny_snapshot(target, _SEED)
    vae = fast_vae.new_vae(torch.Generator().manual_seed(0))
    newest = "decoder.pt" if (source / "decoder.pt").is_file() else "vae.pt"
    vae.load_state_dict(averaged_weights(source / newest), strict=False)
    mean, std = (value.flatten() for value in latent_scale(vae, source / "latent_scale.pt"))
    # bfloat16 everywhere: the engine computes in float32 from it, and half the size is what matters here.
    state = vae_state(vae, mean, std)
    torch.save({name: value.to(torch.bfloat16) for name, value in state.items()}, target / VAE_FILE)
    _write_audio_encoder(averaged_weights(source / "audio.pt"), target / AUDIO_ENCODER_FOLDER)
    _write_transformer(averaged_weights(source / "transformer.pt"), target)
    Snapshot.open(target)


def _write_audio_encoder(weights: Mapping[str, Tensor], folder: Path) -> None:
    """Replace what was trained; what the tiny snapshot has beyond it (the classifier) stays."""
    state = load_file(folder / "model.safetensors")
    own = {f"wav2vec2.{name.removeprefix('encoder.')}": v for name, v in weights.items() if name.startswith("encoder.")}
    unknown = sorted(set(own) - set(state))
    if unknown:
        raise ValueError(f"weights {unknown} do not belong to the audio encoder; expected the keys of its folder")
    state = {name: value.to(torch.bfloat16).contiguous() for name, value in {**state, **own}.items()}
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    wrong = {name: config.get(name) for name, value in audio_stage.CONFIG.items() if config.get(name) != _plain(value)}
    if wrong:
        raise ValueError(f"the audio encoder of the tiny snapshot has {wrong}; expected {audio_stage.CONFIG}")


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _write_transformer(weights: Mapping[str, Tensor], folder: Path) -> None:
    net = trainable_transformer.new_transformer(torch.Generator().manual_seed(0))
    own = {name.removeprefix("net."): value for name, value in weights.items() if name.startswith("net.")}
    net.load_state_dict(own, strict=True)
    for path in folder.glob("diffusion_pytorch_model*"):
        path.unlink()
    state = {name: value.detach().to(torch.bfloat16).contiguous() for name, value in net.state_dict().items()}
    save_file(state, folder / TRANSFORMER_FILE)
    total_size = sum(value.nbytes for value in state.values())
    index = {"metadata": {"total_size": total_size}, "weight_map": dict.fromkeys(sorted(state), TRANSFORMER_FILE)}
    (folder / TRANSFORMER_INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    text = json.dumps(trainable_transformer.CONFIG, indent=2) + "\n"
    (folder / CONFIG_FILE).write_text(text, encoding="utf-8")


def main() -> None:
    """Parse the command line and export."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", type=Path)
    parser.add_argument("--from", dest="source", type=Path, required=True, help="folder of the checkpoints")
    arguments = parser.parse_args()
    export(arguments.source, arguments.target)


if __name__ == "__main__":
    main()
