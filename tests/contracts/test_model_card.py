"""Check the model cards of the small models against the snapshots that they describe."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from s2v_tasks.schemas.model_card import load_model_card
from s2v_tasks.verification.talker_snapshot import write_talker_snapshot
from s2v_tasks.verification.tiny_snapshot import write_tiny_snapshot

CONFIG = Path(__file__).parents[2] / "config"
NOT_IN_CONFIG_JSON = {
    "name",
    "transformer_parameters",
    "vae_parameters",
    "vae_base_dim",
    "smallest_trained_area",
    "files",
}


@pytest.mark.parametrize(
    ("name", "write"), [("tiny", lambda path: write_tiny_snapshot(path, seed=0)), ("talker", write_talker_snapshot)]
)
def test_card_describes_the_snapshot(name: str, write: Callable[[Path], None], tmp_path: Path) -> None:
    """Dimensions and numbers of parameters on the card equal those of the written files."""
    write(tmp_path / name)
    card = load_model_card(CONFIG, name)

    config = json.loads((tmp_path / name / "config.json").read_text())
    dimensions = card.model_dump(mode="json", exclude=NOT_IN_CONFIG_JSON)
    assert dimensions == {name: config[name] for name in dimensions}

    shards = [load_file(path) for path in (tmp_path / name).glob("*.safetensors")]
    assert card.transformer_parameters == sum(value.numel() for shard in shards for value in shard.values())

    vae = torch.load(tmp_path / name / "Wan2.1_VAE.pth", weights_only=True)
    assert card.vae_parameters == sum(value.numel() for value in vae.values())
    assert card.vae_base_dim == vae["encoder.conv1.weight"].shape[0]
