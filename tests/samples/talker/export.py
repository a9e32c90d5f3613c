"""Pack the checkpoints of all stages into one file: `python export.py FILE --from OUT [--snapshot DIR]`."""

import argparse
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fast_vae
import torch
import trainable_transformer
from films import latent_scale
from torch import Tensor
from training import averaged_weights

from s2v_tasks.engine.encoders.vae import LATENT_MEAN, LATENT_STD, key_pairs
from s2v_tasks.verification.talker_snapshot import pack, unpack


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


def export(source: Path) -> bytes:
    """Return the packed snapshot of the checkpoints in the folder `source`."""
    vae = fast_vae.new_vae(torch.Generator().manual_seed(0))
    newest = "decoder.pt" if (source / "decoder.pt").is_file() else "vae.pt"
    vae.load_state_dict(averaged_weights(source / newest), strict=False)
    mean, std = (value.flatten() for value in latent_scale(vae, source / "latent_scale.pt"))
    encoder = part(averaged_weights(source / "audio.pt"), "encoder.")
    audio = {f"wav2vec2.{name}": value for name, value in encoder.items()}
    net = trainable_transformer.new_transformer(torch.Generator().manual_seed(0))
    net.load_state_dict(part(averaged_weights(source / "transformer.pt"), "net."), strict=True)
    return pack(net.state_dict(), trainable_transformer.CONFIG, vae_state(vae, mean, std), audio)


def part(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the weights whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def main() -> None:
    """Parse the command line, pack the snapshot and print its size and sha256."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", type=Path, help="the packed file; s2v_tasks/verification/talker.safetensors.xz")
    parser.add_argument("--from", dest="source", type=Path, required=True, help="folder of the checkpoints")
    parser.add_argument("--snapshot", type=Path, help="new folder for the snapshot, not packed")
    arguments = parser.parse_args()
    packed = export(arguments.source)
    arguments.target.write_bytes(packed)
    print(f"{len(packed)} bytes, sha256 {hashlib.sha256(packed).hexdigest()}")
    if arguments.snapshot is not None:
        arguments.snapshot.mkdir(parents=True)
        unpack(packed, arguments.snapshot)


if __name__ == "__main__":
    main()
