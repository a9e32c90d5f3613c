"""Begin with the packed weights: they become the checkpoints of a folder, from which the stages go on.

The optimizers and the head on the sound tokens are not packed; they begin anew.
"""

import lzma
from pathlib import Path
from typing import Any

import fast_vae
import torch
import trainable_transformer
from diffusers import AutoencoderKLWan
from export import part
from safetensors.torch import load
from torch import Tensor, nn

from s2v_tasks.engine.encoders.vae import LATENT_MEAN, LATENT_STD, key_pairs
from s2v_tasks.verification.talker_snapshot import PACKED

# Stage 2 keeps the latents of this VAE.
VAE_BEFORE = "vae_before.pt"


def begin(out: Path) -> None:
    """Write the checkpoints of the packed weights to `out`, which has none."""
    out.mkdir(parents=True)
    tensors = {name: value.float() for name, value in load(lzma.decompress(PACKED.read_bytes())).items()}
    vae = _scaled_vae(part(tensors, "vae/"))
    torch.save(vae.state_dict(), out / VAE_BEFORE)
    torch.save(_checkpoint(vae), out / "vae.pt")
    torch.save({"mean": torch.zeros(16), "std": torch.ones(16)}, out / "latent_scale.pt")
    encoder = {f"encoder.{name.removeprefix('wav2vec2.')}": v for name, v in part(tensors, "audio_encoder/").items()}
    torch.save({"step": 0, "cpu_seconds": 0.0, "reached": True, "averaged": encoder}, out / "audio.pt")
    net = trainable_transformer.new_transformer(torch.Generator().manual_seed(0))
    net.load_state_dict(part(tensors, "transformer/"))
    module = nn.ModuleDict({"net": net, "head": trainable_transformer.SoundHead(net.config.dim)})
    torch.save(_checkpoint(module), out / "transformer.pt")


def load_vae(path: Path) -> AutoencoderKLWan:
    """Return the VAE of a file of `begin`."""
    vae = fast_vae.new_vae(torch.Generator().manual_seed(0))
    vae.load_state_dict(torch.load(path, weights_only=True))
    return vae


def _checkpoint(module: nn.Module) -> dict[str, Any]:
    averaged = {name: value.detach() for name, value in module.named_parameters()}
    return {"step": 0, "cpu_seconds": 0.0, "module": module.state_dict(), "averaged": averaged}


def _scaled_vae(official: dict[str, Tensor]) -> AutoencoderKLWan:
    """Return the VAE whose latents have mean 0 and deviation 1, as the transformer sees them."""
    state = {name: official[key] for key, name in key_pairs()}
    mean, std = torch.tensor(LATENT_MEAN), torch.tensor(LATENT_STD)
    n = fast_vae.CHANNELS
    state["quant_conv.weight"][:n] /= std.view(-1, 1, 1, 1, 1)
    state["quant_conv.bias"][:n] = (state["quant_conv.bias"][:n] - mean) / std
    weight = state["post_quant_conv.weight"]
    state["post_quant_conv.bias"] += weight.flatten(1) @ mean
    state["post_quant_conv.weight"] = weight * std.view(1, -1, 1, 1, 1)
    vae = fast_vae.new_vae(torch.Generator().manual_seed(0))
    vae.load_state_dict(state)
    return vae
