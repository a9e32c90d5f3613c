"""Check the advice for folders that are not the folder of a snapshot."""

import json
import shutil
from pathlib import Path

import pytest

from s2v_tasks.engine.loading import Snapshot
from s2v_tasks.engine.loading.folders import advice_for
from s2v_tasks.engine.loading.inspection import inspect
from s2v_tasks.engine.loading.snapshot import AUDIO_ENCODER_FOLDER, TRANSFORMER_INDEX_FILE, VAE_FILE
from s2v_tasks.errors import ConfigurationError

COMMIT = "models--Wan-AI--Wan2.2-S2V-14B/snapshots/0123456789"


@pytest.mark.parametrize(
    ("place", "given"),
    [
        ("Wan2.2-S2V-14B", "."),
        ("Wan2.2-S2V-14B", "Wan2.2-S2V-14B/google"),
        ("Wan2.2-S2V-14B", "Wan2.2-S2V-14B/google/umt5-xxl"),
        ("Wan2.2-S2V-14B", "Wan2.2-S2V-14B/Wan2.1_VAE.pth"),
        (COMMIT, "models--Wan-AI--Wan2.2-S2V-14B"),
        (COMMIT, "."),
    ],
)
def test_the_folder_of_the_weights_is_named(tiny_snapshot_path: Path, tmp_path: Path, place: str, given: str) -> None:
    """For a path above or below the weights, in a cache of the Hub too, the advice is the folder of the weights."""
    shutil.copytree(tiny_snapshot_path, tmp_path / place)
    assert advice_for(tmp_path / given) == f"the weights are in {tmp_path / place}: use that folder"
    if (tmp_path / given).is_dir():
        (line,) = inspect(tmp_path / given)
        assert f"the weights are in {tmp_path / place}" in line


def test_a_complete_folder_and_an_empty_one_get_no_advice(tiny_snapshot_path: Path, tmp_path: Path) -> None:
    """Inspection of a complete snapshot counts its shards as one transformer; an empty folder is to be completed."""
    lines = inspect(tiny_snapshot_path)
    assert lines[1].startswith("transformer: 2 of 2 files are whole; together they are a transformer of Wan2.2-S2V")
    assert lines[-1] == "nothing is missing; use it with S2V_SNAPSHOT_PATH"
    assert advice_for(tmp_path) is None
    assert any(line.startswith("complete it with: hf download") for line in inspect(tmp_path))


def test_a_part_of_the_shards_is_not_judged(tiny_snapshot_path: Path, tmp_path: Path) -> None:
    """Without one shard the others are not called another model; only the missing one is downloaded."""
    copied = Path(shutil.copytree(tiny_snapshot_path, tmp_path / "copy"))
    shard = Snapshot(copied).transformer_shards()[1]
    shard.unlink()
    lines = inspect(copied)
    assert "transformer: 1 of 2 files are whole" in lines
    assert lines[-1].endswith(f"Wan2.2-S2V-14B {shard.name} --local-dir {copied}")


def test_other_models_are_named_and_not_completed(tiny_snapshot_path: Path, tmp_path: Path) -> None:
    """Repositories of diffusers, of two transformers and of text to video lead to the repository of this model."""
    (tmp_path / "diffusers").mkdir()
    (tmp_path / "diffusers" / "model_index.json").write_text("{}")
    assert "in the layout of diffusers: download the original one" in inspect(tmp_path / "diffusers")[0]
    (tmp_path / "i2v" / "high_noise_model").mkdir(parents=True)
    shutil.copy(tiny_snapshot_path / VAE_FILE, tmp_path / "i2v")
    assert "another model, Wan2.2 with two transformers" in inspect(tmp_path / "i2v")[0]
    copied = Path(shutil.copytree(tiny_snapshot_path, tmp_path / "t2v"))
    shutil.rmtree(copied / AUDIO_ENCODER_FOLDER)
    (copied / TRANSFORMER_INDEX_FILE).unlink()
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps({**config, "model_type": "t2v"}))
    assert not any("hf download" in line for line in inspect(copied))
    with pytest.raises(ConfigurationError, match=r"t2v/config\.json has model_type='t2v'; only 's2v' is supported"):
        Snapshot.open(copied)


def test_other_files_are_not_called_damaged(tiny_snapshot_path: Path) -> None:
    """A file that holds no weights is refused by its kind."""
    with pytest.raises(ConfigurationError, match=r"config\.json is no file of weights; expected a folder, or \.safe"):
        inspect(tiny_snapshot_path / "config.json")
