"""Check that snapshots in the layouts of other tools load as the same weights."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer import Typer
from typer.testing import CliRunner

from s2v_tasks.cli.installation import snapshot_inspect
from s2v_tasks.engine.encoders import text_encoder, vae
from s2v_tasks.engine.loading import Snapshot, snapshot_id
from s2v_tasks.engine.loading.inspection import inspect
from s2v_tasks.engine.loading.layouts import diffusers_key
from s2v_tasks.engine.loading.snapshot import AUDIO_ENCODER_FOLDER, TEXT_ENCODER_FILE, TRANSFORMER_INDEX_FILE, VAE_FILE
from s2v_tasks.engine.loading.weights import read_pth
from s2v_tasks.errors import ConfigurationError
from tests.engine.float8_file import in_float8

KEYS = [line.split("\t")[0] for line in (Path(__file__).parent / "s2v_14b_state_dict.tsv").read_text().split("\n")[1:]]
SINGLE, SCALED = "wan2.2_s2v_14B_bf16.safetensors", "wan2.2_s2v_14B_fp8_scaled.safetensors"


@pytest.fixture
def copied(tiny_snapshot_path: Path, tmp_path: Path) -> Path:
    """Return a copy of the tiny snapshot without the files of its transformer."""
    folder = Path(shutil.copytree(tiny_snapshot_path, tmp_path / "copy"))
    for shard in (*Snapshot.open(folder).transformer_shards(), folder / TRANSFORMER_INDEX_FILE):
        shard.unlink()
    return folder


@pytest.fixture
def official(tiny_snapshot_path: Path) -> dict[str, Tensor]:
    shards = Snapshot.open(tiny_snapshot_path).transformer_shards()
    return {key: value for shard in shards for key, value in load_file(shard).items()}


def loaded(snapshot: Snapshot, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    transformer = snapshot.build_transformer()
    snapshot.fill_transformer(transformer, "cpu", dtype)
    return transformer.state_dict()


def test_the_diffusers_names_are_those_of_the_library() -> None:
    """The map of all 1260 keys equals the library's own conversion, and no two keys share a name."""
    keys = [key for key in KEYS if key]
    names = [diffusers_key(key) for key in keys]
    assert len(keys) == len(set(names)) == 1260
    for key, name in zip(keys, names, strict=True):
        assert list(convert_wan_transformer_to_diffusers({key: torch.zeros(1)})) == [name]


@pytest.mark.parametrize(
    "rename",
    [lambda key: key, lambda key: f"model.diffusion_model.{key}", lambda key: f"diffusion_model.{key}", diffusers_key],
    ids=["official", "editor", "editor-short", "diffusers"],
)
def test_a_single_file_holds_the_same_weights(
    copied: Path, official: dict[str, Tensor], rename: Callable[[str], str]
) -> None:
    """One file with the keys of any layout gives the weights of the official shards, bit for bit."""
    save_file({rename(key): value for key, value in official.items()}, copied / SINGLE)
    weights = loaded(Snapshot.open(copied))
    assert weights.keys() == official.keys()
    assert all(torch.equal(weights[key], official[key].float()) for key in official)


@pytest.mark.parametrize("suffix", [".scale_weight", ".weight_scale"])
@pytest.mark.parametrize("per_row", [False, True])
def test_float8_with_scales_is_close(copied: Path, official: dict[str, Tensor], suffix: str, per_row: bool) -> None:
    """Each float8 weight times its scale is within the rounding of float8; markers are left out."""
    tensors = in_float8(official, suffix, per_row=per_row)
    save_file(tensors, copied / SCALED)
    weights = loaded(Snapshot.open(copied))
    for key, value in official.items():
        error = (weights[key] - value.float()).norm() / value.float().norm().clamp(min=1e-9)
        assert error < (0.04 if tensors[key].dtype == torch.float8_e4m3fn else 1e-9)


@pytest.mark.parametrize("suffix", [".scale_weight", ".weight_scale"])
def test_scales_of_blocks_are_refused(copied: Path, official: dict[str, Tensor], suffix: str) -> None:
    """A weight with scales for blocks within its rows is named by the header, before a weight is read."""
    tensors = in_float8(official, suffix, per_row=False)
    tensors[f"blocks.0.ffn.0{suffix}"] = torch.ones(2, 4)
    save_file(tensors, copied / SCALED)
    with pytest.raises(ConfigurationError, match=r"has 8 values for a weight of \[128, 64\]; expected 1, or one for"):
        Snapshot.open(copied).check_transformer()
    names = dict(text_encoder.key_pairs(2))
    text = {names[key]: value.clone() for key, value in read_pth(copied / TEXT_ENCODER_FILE, "cpu").items()}
    (copied / TEXT_ENCODER_FILE).unlink()
    layer = "encoder.block.0.layer.1.DenseReluDense.wo"
    text |= {f"{layer}.weight": text[f"{layer}.weight"].to(torch.float8_e4m3fn), f"{layer}{suffix}": torch.ones(2, 4)}
    save_file(text, copied / "umt5_xxl_fp8_e4m3fn_scaled.safetensors")
    with pytest.raises(ConfigurationError, match=r"umt5_xxl_fp8.*has 8 values for a weight"):
        Snapshot.open(copied).load_text_encoder("cpu")


def test_companions_hold_the_same_weights(copied: Path, official: dict[str, Tensor], tiny_snapshot_path: Path) -> None:
    """VAE, text encoder and audio encoder as single files of other tools give the results of the official files."""
    save_file(official, copied / SINGLE)
    state = read_pth(copied / VAE_FILE, "cpu")
    names = dict(vae.key_pairs())
    save_file({names.get(key, key): value.clone() for key, value in state.items()}, copied / "wan_2.1_vae.safetensors")
    state = read_pth(copied / TEXT_ENCODER_FILE, "cpu")
    names = dict(text_encoder.key_pairs(2))
    text = {names[key]: value.clone() for key, value in state.items()}
    save_file(text | {"spiece_model": torch.zeros(3, dtype=torch.uint8)}, copied / "umt5_xxl_fp16.safetensors")
    audio = copied / AUDIO_ENCODER_FOLDER / "model.safetensors"
    save_file(load_file(audio), copied / "wav2vec2_large_english_fp16.safetensors")
    for file in (copied / VAE_FILE, copied / TEXT_ENCODER_FILE, audio):
        file.unlink()
    ours, theirs = Snapshot.open(copied), Snapshot.open(tiny_snapshot_path)
    pixels = torch.rand(1, 3, 5, 64, 64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(ours.load_vae("cpu").encode(pixels), theirs.load_vae("cpu").encode(pixels))
    prompts = [snapshot.load_text_encoder("cpu").encode("a woman speaks") for snapshot in (ours, theirs)]
    assert torch.equal(*prompts)
    waveform = torch.randn(16000, generator=torch.Generator().manual_seed(1)).numpy()
    states = [snapshot.load_audio_encoder("cpu").encode(waveform) for snapshot in (ours, theirs)]
    assert torch.equal(*states)


def test_a_text_encoder_in_float16_does_not_overflow(copied: Path, official: dict[str, Tensor]) -> None:
    """Weights in float16 are computed in bfloat16: the feed-forward of umT5 exceeds the largest number of float16."""
    save_file(official, copied / SINGLE)
    state = read_pth(copied / TEXT_ENCODER_FILE, "cpu")
    names = dict(text_encoder.key_pairs(2))
    large = {key: value * (1000 if ".ffn." in key else 1) for key, value in state.items()}
    torch.save(large, copied / TEXT_ENCODER_FILE)
    expected = Snapshot.open(copied).load_text_encoder("cpu").encode("a woman speaks")
    (copied / TEXT_ENCODER_FILE).unlink()
    save_file({names[key]: value.half() for key, value in large.items()}, copied / "umt5_xxl_fp16.safetensors")
    context = Snapshot.open(copied).load_text_encoder("cpu").encode("a woman speaks")
    assert torch.equal(context, expected)


def test_a_snapshot_is_composed_of_files_elsewhere(
    copied: Path, official: dict[str, Tensor], tmp_path: Path, tiny_snapshot_path: Path
) -> None:
    """Configured files replace those of the folder, also in its identity; a missing one is named by its path."""
    elsewhere = tmp_path / "other" / "any_name.safetensors"
    elsewhere.parent.mkdir()
    with pytest.raises(ConfigurationError, match=r"lacks .*any_name\.safetensors"):
        Snapshot.open(copied, {"transformer": elsewhere})
    save_file(official, elsewhere)
    composed = Snapshot.open(copied, {"transformer": elsewhere})
    assert all(torch.equal(value, official[key].float()) for key, value in loaded(composed).items())
    assert elsewhere in composed.weight_files()
    assert snapshot_id(composed) != snapshot_id(Snapshot.open(tiny_snapshot_path))


def test_inspection_lists_files_and_what_is_missing(copied: Path, official: dict[str, Tensor]) -> None:
    """Inspection prints kind and layout of each file, the missing files, and the command that adds them."""
    assert "transformer: missing" in inspect(copied)
    assert any(line.startswith("complete it with: hf download Wan-AI/Wan2.2-S2V-14B") for line in inspect(copied))
    save_file({f"diffusion_model.{key}": value for key, value in official.items()}, copied / SINGLE)
    lines = "\n".join(inspect(copied))
    assert f"{SINGLE} is a transformer of Wan2.2-S2V, single file with prefix" in lines
    assert "is a Wan 2.1 VAE, official keys" in lines
    assert "nothing is missing" in lines
    save_file({"blocks.0.self_attn.q.lora_down.weight": torch.zeros(1)}, copied / "lora.safetensors")
    assert "is an adapter (LoRA)" in inspect(copied / "lora.safetensors")[0]
    (copied / "model-Q4.gguf").write_bytes(b"GGUF" + bytes(100))
    lines = "\n".join(inspect(copied))
    assert "not used: lora.safetensors is an adapter" in lines
    assert "not used: model-Q4.gguf is a GGUF file" in lines
    assert "to use it, name it by `files` in config/models.yaml" in lines
    app = Typer()
    app.command()(snapshot_inspect)
    assert "is a Wan 2.1 VAE" in CliRunner().invoke(app, [str(copied)]).output


def test_a_gguf_file_is_refused(copied: Path) -> None:
    """Inspection and loading refuse a GGUF file with the reason and the file to use instead."""
    (copied / SINGLE).write_bytes(b"GGUF" + bytes(100))
    for attempt in (lambda: inspect(copied / SINGLE), lambda: loaded(Snapshot.open(copied))):
        with pytest.raises(ConfigurationError, match=r"is a GGUF file: .*Use the bf16 or fp8_scaled"):
            attempt()
