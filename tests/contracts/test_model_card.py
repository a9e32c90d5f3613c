"""The card of the tiny model against the snapshot that it describes."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from s2v_tasks.schemas.model_card import load_model_card
from s2v_tasks.verification.tiny_snapshot import write_tiny_snapshot

CONFIG = Path(__file__).parents[2] / "config"
NOT_IN_CONFIG_JSON = {"name", "transformer_parameters", "vae_parameters", "vae_base_dim", "smallest_trained_area"}


def test_tiny_card_describes_the_tiny_snapshot(tmp_path: Path) -> None:
    """Dimensions and numbers of parameters on the card are those of the files that init-tiny writes."""
    write_tiny_snapshot(tmp_path / "tiny", seed=0)
    card = load_model_card(CONFIG, "tiny")

    config = json.loads((tmp_path / "tiny" / "config.json").read_text())
    dimensions = card.model_dump(mode="json", exclude=NOT_IN_CONFIG_JSON)
    assert dimensions == {name: config[name] for name in dimensions}

    shards = [load_file(path) for path in (tmp_path / "tiny").glob("*.safetensors")]
    assert card.transformer_parameters == sum(value.numel() for shard in shards for value in shard.values())

    vae = torch.load(tmp_path / "tiny" / "Wan2.1_VAE.pth", weights_only=True)
    assert card.vae_parameters == sum(value.numel() for value in vae.values())
    assert card.vae_base_dim == vae["encoder.conv1.weight"].shape[0]
