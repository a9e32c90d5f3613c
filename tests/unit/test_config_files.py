"""Check the texts of config/ as editors save them."""

from collections.abc import Callable
from pathlib import Path

import pytest

from s2v_tasks.errors import ConfigurationError
from s2v_tasks.schemas.model_card import load_adapter_cards, load_gpu_card, load_model_card
from s2v_tasks.schemas.preset import load_presets
from s2v_tasks.validation.checks import load_thresholds
from s2v_tasks.validation.quality_limits import load_quality_limits

CONFIG = Path(__file__).parents[2] / "config"
LOADERS: dict[str, Callable[[Path], object]] = {
    "presets.yaml": load_presets,
    "adapters.yaml": load_adapter_cards,
    "models.yaml": lambda folder: load_model_card(folder, "tiny"),
    "gpus.yaml": lambda folder: load_gpu_card(folder, "cpu"),
    "validation.yaml": load_thresholds,
    "quality.yaml": load_quality_limits,
}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("name", LOADERS)
def test_a_file_in_unicode_is_read(tmp_path: Path, name: str, encoding: str) -> None:
    """A file with letters outside ASCII is read in each encoding of Unicode that editors write."""
    text = (CONFIG / name).read_text(encoding="utf-8") + "# größer\n"
    (tmp_path / name).write_text(text, encoding=encoding)
    LOADERS[name](tmp_path)


@pytest.mark.parametrize("name", LOADERS)
def test_a_file_in_another_encoding_is_refused(tmp_path: Path, name: str) -> None:
    """The message names the file and the encoding that is expected."""
    text = (CONFIG / name).read_text(encoding="utf-8") + "# größer\n"
    (tmp_path / name).write_text(text, encoding="latin-1")
    with pytest.raises(ConfigurationError, match=rf"{name} is not (?s:.*); save it as UTF-8"):
        LOADERS[name](tmp_path)
