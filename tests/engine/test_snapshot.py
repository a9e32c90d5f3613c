"""Check the files of a snapshot: completeness, checksums, identity and loading."""

import hashlib
import json
import os
import shutil
import weakref
from pathlib import Path
from typing import Any

import pytest
import structlog
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from s2v_tasks.engine.loading import Snapshot, snapshot_id
from s2v_tasks.engine.loading.identity import verify_checksums
from s2v_tasks.engine.loading.inspection import inspect
from s2v_tasks.engine.loading.snapshot import (
    AUDIO_ENCODER_FOLDER,
    TOKENIZER_FILE,
    TOKENIZER_FOLDER,
    TRANSFORMER_FILE,
    TRANSFORMER_INDEX_FILE,
    VAE_FILE,
)
from s2v_tasks.engine.models.transformer import S2VTransformer
from s2v_tasks.errors import ConfigurationError


@pytest.fixture
def copied(tiny_snapshot_path: Path, tmp_path: Path) -> Path:
    """A copy of the tiny snapshot that a test may damage."""
    return Path(shutil.copytree(tiny_snapshot_path, tmp_path / "copy"))


def loaded(folder: Path, dtype: torch.dtype) -> S2VTransformer:
    """Return the transformer of a snapshot with its weights."""
    snapshot = Snapshot.open(folder)
    transformer = snapshot.build_transformer()
    snapshot.fill_transformer(transformer, "cpu", dtype)
    return transformer


def test_missing_files_are_all_named(copied: Path) -> None:
    """An incomplete snapshot is a configuration error that names every missing file and the remedy."""
    (copied / VAE_FILE).unlink()
    shutil.rmtree(copied / AUDIO_ENCODER_FOLDER)
    (copied / "diffusion_pytorch_model-00002-of-00002.safetensors").unlink()
    (copied / TOKENIZER_FOLDER / TOKENIZER_FILE).unlink()
    with pytest.raises(ConfigurationError) as caught:
        Snapshot.open(copied)
    config, tokenizer = f"{AUDIO_ENCODER_FOLDER}/config.json", f"{TOKENIZER_FOLDER}/{TOKENIZER_FILE}"
    for named in (VAE_FILE, config, tokenizer, "-00002-of-00002", "init-tiny"):
        assert named in str(caught.value)


def test_missing_index_is_named(copied: Path) -> None:
    """Without an index, the index is missing: the release has no single file with all weights of the transformer."""
    (copied / TRANSFORMER_INDEX_FILE).unlink()
    with pytest.raises(ConfigurationError, match=rf"lacks {TRANSFORMER_INDEX_FILE}\."):
        Snapshot.open(copied)
    *_, command, hint = inspect(copied)
    assert f"Wan2.2-S2V-14B {TRANSFORMER_INDEX_FILE} --local-dir" in command
    assert "inspect it again" in hint


def test_absent_folder_is_named(tmp_path: Path) -> None:
    """A snapshot path that is not a folder is a configuration error with that path."""
    with pytest.raises(ConfigurationError, match="nowhere"):
        Snapshot.open(tmp_path / "nowhere")


def test_a_converted_weight_is_dropped_before_the_next(tiny_snapshot_path: Path) -> None:
    """Only the converted part of each weight is kept, and at most one whole weight exists at a time."""
    seen: list[weakref.ref[Tensor]] = []

    def halved(_key: str, weight: Tensor) -> Tensor:
        assert not any(whole() is not None for whole in seen)
        seen.append(weakref.ref(weight))
        return weight.half()

    snapshot = Snapshot.open(tiny_snapshot_path)
    transformer = snapshot.build_transformer()
    snapshot.fill_transformer(transformer, "cpu", torch.float32, convert=halved)
    assert len(seen) == len(list(transformer.parameters()))
    assert {parameter.dtype for parameter in transformer.parameters()} == {torch.float16}


def test_shards_and_a_single_file_load_alike(copied: Path, tiny_snapshot_path: Path) -> None:
    """The transformer loads the same from shards with an index and from one file without."""
    sharded = loaded(tiny_snapshot_path, torch.float32).state_dict()
    shards = Snapshot.open(copied).transformer_shards()
    save_file({name: value for shard in shards for name, value in load_file(shard).items()}, copied / TRANSFORMER_FILE)
    for file in (*shards, copied / TRANSFORMER_INDEX_FILE):
        file.unlink()
    single = loaded(copied, torch.float32).state_dict()
    assert single.keys() == sharded.keys()
    assert all(torch.equal(single[name], sharded[name]) for name in single)


def test_transformer_has_the_dtype_asked_for(tiny_snapshot_path: Path) -> None:
    """All weights come in one dtype, without gradients, in evaluation mode."""
    transformer = loaded(tiny_snapshot_path, torch.bfloat16)
    assert {value.dtype for value in transformer.state_dict().values()} == {torch.bfloat16}
    assert not any(parameter.requires_grad for parameter in transformer.parameters())
    assert not transformer.training


def test_transformer_that_does_not_fit_its_config_is_refused(copied: Path) -> None:
    """Weights for other dimensions than config.json states are a configuration error."""
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps({**config, "num_layers": 3, "ffn_dim": 64}))
    with pytest.raises(ConfigurationError) as caught:
        loaded(copied, torch.float32)
    assert "unexpected: blocks.3." in str(caught.value)
    assert "instead of [64" in str(caught.value)


def test_index_must_belong_to_its_shards(copied: Path) -> None:
    """Weights that the index places elsewhere are configuration errors; a total that is wrong is a warning."""
    path = copied / TRANSFORMER_INDEX_FILE
    index = json.loads(path.read_text())
    key, shard = sorted(index["weight_map"].items())[0]
    other = next(name for name in index["weight_map"].values() if name != shard)
    for weight_map, message in (
        ({**index["weight_map"], key: other}, f"{key}: stated in {other}, found in {shard}"),
        ({**index["weight_map"], "surplus": shard}, f"surplus: stated in {shard}, found in no shard"),
    ):
        path.write_text(json.dumps({**index, "weight_map": weight_map}))
        with pytest.raises(ConfigurationError, match=message):
            loaded(copied, torch.float32)
    path.write_text(json.dumps({**index, "metadata": {"total_size": index["metadata"]["total_size"] + 2}}))
    with structlog.testing.capture_logs() as logs:
        loaded(copied, torch.float32)
    (warning,) = (entry for entry in logs if entry["event"] == "index_states_another_size")
    assert warning["stated_bytes"] - warning["found_bytes"] == 2


def test_checksums_name_what_is_wrong(copied: Path) -> None:
    """A list in the format of sha256sum passes; a damaged file, an unlisted file and a missing list are named."""
    with pytest.raises(ConfigurationError, match="none is not a folder"):
        verify_checksums(copied / "none")
    with pytest.raises(ConfigurationError, match="SHA256SUMS is missing"):
        verify_checksums(copied)
    names = [file.relative_to(copied).as_posix() for file in Snapshot.open(copied).weight_files()]
    lines = [f"{hashlib.sha256((copied / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
    (copied / "SHA256SUMS").write_text("".join(lines))
    assert verify_checksums(copied) == len(names)
    (copied / "SHA256SUMS").write_text("".join(line for line in lines if VAE_FILE not in line))
    with (copied / TRANSFORMER_INDEX_FILE).open("a") as stream:
        stream.write(" ")
    with pytest.raises(
        ConfigurationError, match=rf"damaged \['{TRANSFORMER_INDEX_FILE}'\], not listed \['{VAE_FILE}'\]"
    ):
        verify_checksums(copied)


@pytest.mark.parametrize("weight_map", [{"a": "../weights.safetensors"}, {"a": 1}, {}, ["a.safetensors"], None])
def test_index_names_files_of_its_own_folder(copied: Path, weight_map: Any) -> None:
    """An index that names files of another folder, or no files, is a configuration error."""
    (copied / TRANSFORMER_INDEX_FILE).write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ConfigurationError, match="own folder"):
        Snapshot.open(copied)


def test_identity_is_that_of_the_content(copied: Path, tiny_snapshot_path: Path) -> None:
    """A copy has the same identity, documentation does not count, and one changed byte of a weight file does."""
    original = snapshot_id(Snapshot(tiny_snapshot_path))
    (copied / "README.md").write_text("A model card.")
    assert snapshot_id(Snapshot(copied)) == original
    for file in Snapshot(copied).weight_files():
        content = file.read_bytes()
        damaged = bytearray(content)
        damaged[len(content) // 2] ^= 1
        if file.name != TRANSFORMER_INDEX_FILE:
            file.write_bytes(damaged)
            assert snapshot_id(Snapshot(copied)) != original, file.name
            file.write_bytes(content)
    assert snapshot_id(Snapshot(copied)) == original


def test_a_commit_in_a_cache_of_the_hub_is_a_snapshot(tiny_snapshot_path: Path, tmp_path: Path) -> None:
    """A folder of links to blobs, as HF_HOME has it, loads and has the same identity."""
    cache = tmp_path / "hub" / "models--Wan-AI--Wan2.2-S2V-14B"
    commit = cache / "snapshots" / ("0" * 40)
    (cache / "blobs").mkdir(parents=True)
    for file in (path for path in tiny_snapshot_path.rglob("*") if path.is_file()):
        blob = cache / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        blob.write_bytes(file.read_bytes())
        link = commit / file.relative_to(tiny_snapshot_path)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    assert snapshot_id(Snapshot.open(commit)) == snapshot_id(Snapshot.open(tiny_snapshot_path))
    loaded(commit, torch.float32)


def test_identity_sees_the_ends_of_large_files(copied: Path) -> None:
    """The identity of a large file covers its first and last bytes and its size."""
    shard = copied / TRANSFORMER_FILE
    (copied / TRANSFORMER_INDEX_FILE).unlink()
    identities = set()
    for position in (None, 0, 20_000_000 - 1):
        with shard.open("wb") as stream:
            stream.truncate(20_000_000)
            if position is not None:
                stream.seek(position)
                stream.write(b"x")
        identities.add(snapshot_id(Snapshot(copied)))
    with shard.open("r+b") as stream:
        stream.truncate(20_000_001)
    identities.add(snapshot_id(Snapshot(copied)))
    assert len(identities) == 4
