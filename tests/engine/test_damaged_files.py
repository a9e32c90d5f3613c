"""Check that damaged files of a snapshot, and weights of other models, are named with the remedy."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, load_file, save_file

from s2v_tasks.engine.loading import Snapshot, files
from s2v_tasks.engine.loading.inspection import inspect
from s2v_tasks.engine.loading.snapshot import (
    AUDIO_ENCODER_FOLDER,
    TEXT_ENCODER_FILE,
    TOKENIZER_FILE,
    TOKENIZER_FOLDER,
    TRANSFORMER_INDEX_FILE,
    VAE_FILE,
)
from s2v_tasks.engine.loading.weights import read_pth
from s2v_tasks.errors import ConfigurationError, TransientError

LFS_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9968229352\n"
SHARD = "diffusion_pytorch_model-00001-of-00002.safetensors"
TOKENIZER = f"{TOKENIZER_FOLDER}/{TOKENIZER_FILE}"


class _Trap:
    """A pickle that creates a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self._path),)


@pytest.fixture
def copied(tiny_snapshot_path: Path, tmp_path: Path) -> Path:
    """A copy of the tiny snapshot that a test may damage."""
    return Path(shutil.copytree(tiny_snapshot_path, tmp_path / "copy"))


def test_damaged_audio_encoder_is_named(copied: Path) -> None:
    """A truncated file of the audio encoder is a configuration error with its path, in both formats of weights."""
    folder = copied / AUDIO_ENCODER_FOLDER
    safe, pickled, config = folder / "model.safetensors", folder / "pytorch_model.bin", folder / "config.json"
    speech = torch.randn(8000, generator=torch.Generator().manual_seed(0)).numpy()
    states = Snapshot.open(copied).load_audio_encoder("cpu").encode(speech)
    weights = load(safe.read_bytes())
    safe.write_bytes(safe.read_bytes()[:-1000])
    with pytest.raises(
        ConfigurationError, match=r"model\.safetensors has [\d,]+ bytes; expected [\d,]+, by its header"
    ):
        Snapshot(copied).load_audio_encoder("cpu")
    safe.unlink()
    torch.save(weights, pickled)
    assert torch.equal(Snapshot.open(copied).load_audio_encoder("cpu").encode(speech), states)
    pickled.write_bytes(pickled.read_bytes()[:1000])
    with pytest.raises(ConfigurationError, match=r"pytorch_model\.bin ends early, after 1,000 bytes"):
        Snapshot(copied).load_audio_encoder("cpu")
    config.write_text(config.read_text()[:-5])
    with pytest.raises(ConfigurationError, match=r"config\.json is not JSON"):
        Snapshot(copied).load_audio_encoder("cpu")


@pytest.mark.parametrize("name", [SHARD, TEXT_ENCODER_FILE, VAE_FILE, TOKENIZER, f"{AUDIO_ENCODER_FOLDER}/config.json"])
@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (LFS_POINTER.encode(), r"is a pointer of Git LFS to a file of 9,968,229,352 bytes that was not downloaded"),
        (b"<!DOCTYPE html><html></html>", r"is a web page; .*`hf download`"),
        (b"", r"is empty; delete it and download it again"),
        (0.5, r"(has [\d,]+ bytes; expected|ends early, after|is not JSON)"),
        (bytes(5000), r"is not (a safetensors file|a file of PyTorch|JSON)"),
    ],
    ids=["pointer", "page", "empty", "half", "zeros"],
)
def test_a_file_that_was_not_downloaded_is_named_before_a_job(
    copied: Path, name: str, content: bytes | float, fault: str
) -> None:
    """A placeholder or a part of a file is named with the remedy when the snapshot is opened, and by inspection."""
    file = copied / name
    whole = file.read_bytes()
    file.write_bytes(whole[: int(content * len(whole))] if isinstance(content, float) else content)
    with pytest.raises(ConfigurationError, match=rf"{name} {fault}"):
        Snapshot.open(copied)
    lines = inspect(copied)
    assert any(re.match(rf"damaged: {name} {fault}", line) for line in lines)
    assert not any("nothing is missing" in line for line in lines)


def test_many_damaged_files_make_a_short_message(copied: Path) -> None:
    """A clone without Git LFS has a pointer in place of each large file: three are named, the others counted."""
    for file in Snapshot(copied).weight_files():
        if file.suffix != ".json" or file.name == TOKENIZER_FILE:
            file.write_text(LFS_POINTER)
    with pytest.raises(ConfigurationError, match="and 3 more files") as caught:
        Snapshot.open(copied)
    assert len(str(caught.value)) < 900


def test_damaged_weights_are_named_when_they_are_loaded(copied: Path) -> None:
    """Weights that were damaged after the check are configuration errors with their path, without advice of torch."""
    for name in (SHARD, VAE_FILE):
        (copied / name).write_bytes((copied / name).read_bytes()[:1000])
    snapshot = Snapshot(copied)
    with pytest.raises(ConfigurationError, match="00001-of-00002"):
        snapshot.fill_transformer(snapshot.build_transformer(), "cpu", torch.float32)
    with pytest.raises(ConfigurationError, match="Wan2"):
        snapshot.load_vae("cpu")
    torch.save({"weight": _Trap(copied / "executed")}, copied / VAE_FILE)
    with pytest.raises(ConfigurationError, match=r"VAE\.pth cannot be read as weights \(UnpicklingError\)") as caught:
        snapshot.load_vae("cpu")
    assert "weights_only" not in str(caught.value)


def test_links_of_a_cache_without_its_blobs_are_named(copied: Path) -> None:
    """A link that leads nowhere is not missing: downloading into the folder would not help."""
    (copied / VAE_FILE).unlink()
    (copied / VAE_FILE).symlink_to("../../blobs/abc")
    with pytest.raises(ConfigurationError, match=r"VAE\.pth is a link to \.\./\.\./blobs/abc, which does not exist"):
        Snapshot.open(copied)


def test_weights_of_another_model_are_refused_by_their_headers(copied: Path) -> None:
    """A transformer without the weights for audio is named without reading it, also by inspection."""
    snapshot = Snapshot.open(copied)
    snapshot.check_transformer()
    for shard in snapshot.transformer_shards():
        kept = {key: value for key, value in load_file(shard).items() if not key.startswith("audio_injector.")}
        save_file(kept, shard)
    index = json.loads((copied / TRANSFORMER_INDEX_FILE).read_text())
    weight_map = {key: name for key, name in index["weight_map"].items() if not key.startswith("audio_injector.")}
    (copied / TRANSFORMER_INDEX_FILE).write_text(json.dumps({**index, "weight_map": weight_map}))
    with pytest.raises(ConfigurationError, match=r"do not fit S2VTransformer: missing: audio_injector\."):
        snapshot.check_transformer()
    assert any(line.startswith("not usable: the weights of the transformer") for line in inspect(copied))


def test_pth_holds_tensors_only(tmp_path: Path) -> None:
    """Both formats of PyTorch are read, and a pickle that creates anything but tensors is not executed."""
    torch.save({"weight": _Trap(tmp_path / "executed")}, tmp_path / "objects.pth")
    with pytest.raises(ConfigurationError, match=r"objects\.pth"):
        read_pth(tmp_path / "objects.pth", "cpu")
    assert not (tmp_path / "executed").exists()
    torch.save({"weight": torch.ones(2)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert read_pth(tmp_path / "old.pth", "cpu")["weight"].tolist() == [1, 1]
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    with pytest.raises(ConfigurationError, match="not a plain dictionary"):
        read_pth(tmp_path / "list.pth", "cpu")


def test_a_volume_that_fails_is_tried_again(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An input or output error while the files are checked is transient, and not a fault of the files."""

    def broken(_path: Path) -> str | None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(files, "safetensors_header", broken)
    with pytest.raises(TransientError, match=r"safetensors cannot be read \(Input/output error\)\. Try again"):
        Snapshot.open(copied)
