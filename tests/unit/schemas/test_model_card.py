"""Check the cards of models and GPUs."""

from pathlib import Path

import pytest
import yaml

from s2v_tasks.errors import ConfigurationError
from s2v_tasks.schemas.model_card import load_gpu_card, load_model_card
from s2v_tasks.settings import Settings

CONFIG = Path(__file__).parents[3] / "config"


def test_every_shipped_card_is_valid_and_defaults_exist() -> None:
    """All entries of both files load, and contain the defaults of the settings."""
    models = yaml.safe_load((CONFIG / "models.yaml").read_text())
    gpus = yaml.safe_load((CONFIG / "gpus.yaml").read_text())
    assert [load_model_card(CONFIG, name).name for name in models] == list(models)
    assert [load_gpu_card(CONFIG, name).name for name in gpus] == list(gpus)
    assert Settings.model_fields["model"].default in models
    assert Settings.model_fields["gpu"].default in gpus


def test_unknown_names_are_configuration_errors() -> None:
    """The message has the setting and the known names."""
    with pytest.raises(ConfigurationError, match=r"S2V_MODEL='gpt'.*models\.yaml: expected one of wan2\.2-s2v-14b"):
        load_model_card(CONFIG, "gpt")
    with pytest.raises(ConfigurationError, match=r"S2V_GPU='abacus'.*gpus\.yaml: expected one of h100-sxm"):
        load_gpu_card(CONFIG, "abacus")


@pytest.mark.parametrize("text", ["", "[1", "h100-sxm: 3\n", "h100-sxm:\n  bf16_tflops: -1\n"])
def test_bad_files_are_configuration_errors(tmp_path: Path, text: str) -> None:
    """An empty, a broken and a wrong file are refused with the path of the file."""
    (tmp_path / "gpus.yaml").write_text(text)
    with pytest.raises(ConfigurationError, match=r"gpus\.yaml is not a valid file of GpuCard entries"):
        load_gpu_card(tmp_path, "h100-sxm")


def test_missing_file_is_a_configuration_error(tmp_path: Path) -> None:
    """A folder without the file is refused with the path of the file."""
    with pytest.raises(ConfigurationError, match=r"models\.yaml is not a valid file"):
        load_model_card(tmp_path, "wan2.2-s2v-14b")
