"""A tiny snapshot in the official layout: same files, same keys, small dimensions, weights drawn from a seed.

With it the production code runs on a CPU in seconds. `tiny_networks` describes the networks.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel, Wav2Vec2Config, Wav2Vec2ForCTC

from s2v_tasks.engine.conditions import NEGATIVE_PROMPT
from s2v_tasks.engine.encoders import text_encoder, vae
from s2v_tasks.engine.loading import Snapshot, snapshot_id
from s2v_tasks.engine.loading.snapshot import (
    AUDIO_ENCODER_FOLDER,
    CONFIG_FILE,
    TEXT_ENCODER_FILE,
    TOKENIZER_FOLDER,
    TRANSFORMER_INDEX_FILE,
    VAE_FILE,
)
from s2v_tasks.engine.models.config import S2VConfig
from s2v_tasks.engine.models.transformer import S2VTransformer
from s2v_tasks.errors import ConfigurationError, PermanentError
from s2v_tasks.verification.tiny_networks import draw, shapes_of, show_pictures_in_vae, show_reference_in_transformer

_TEXT_DIM = 32
_AUDIO_DIM = 32
_VAE_BASE_DIM = 8
_TRANSFORMER_CONFIG: dict[str, Any] = {
    "_class_name": "WanModel_S2V",
    "model_type": "s2v",
    "dim": 64,
    "ffn_dim": 128,
    "num_heads": 2,
    "num_layers": 4,
    "in_dim": 16,
    "out_dim": 16,
    "freq_dim": 32,
    "text_dim": _TEXT_DIM,
    "text_len": 512,
    "cond_dim": 16,
    "audio_dim": _AUDIO_DIM,
    "num_audio_token": 4,
    "audio_inject_layers": [0, 2],
    "eps": 1e-6,
    "enable_adain": True,
    "adain_mode": "attn_norm",
    "zero_timestep": True,
    "enable_framepack": True,
    "framepack_drop_mode": "padd",
    "add_last_motion": True,
}
_TRANSFORMER_GAINS = {
    r"^time_embedding\.2|^time_projection|^head\.head|^cond_encoder": 0.05,
    r"injector\.\d+\.o\.": 0.06,
    r"\.o\.|ffn\.2": 0.05,
}
_VAE_GAINS = {r"residual\.6|\.proj": 0.02}
# What the merges of the tokenizer are learnt from: common words become one token, everything else falls back to bytes.
_TOKENIZER_TEXT = (
    "a woman speaks to the camera and smiles, her face in soft light with a warm background, while she talks about the "
    "day in a calm voice",
    "a man is singing into the microphone on a stage, he moves his head and hands with the music, the video is sharp "
    "and looks natural",
    "an old person reads from a book, the lips are in sync with the speech, high quality, cinematic portrait",
    NEGATIVE_PROMPT,
)
_VOCABULARY_SIZE = 768
_SPECIAL_TOKENS = ("<pad>", "</s>", "<unk>")


def write_tiny_snapshot(path: Path, seed: int) -> None:
    """Write the tiny snapshot of `seed` to the folder `path`, completely or not at all.

    The bytes depend only on the seed. A folder that already holds this snapshot stays as it is; any other folder with
    content raises ConfigurationError. Raises PermanentError for a seed that is not in 0..2^63-1.
    """
    if not 0 <= seed < 2**63:
        raise PermanentError(f"seed={seed}; expected 0..2^63-1")
    with whole_folder(path) as partial:
        write_tiny_files(partial, torch.Generator().manual_seed(seed))


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder that becomes the snapshot `path` when the block ends without an error.

    A folder that already holds this snapshot stays as it is; any other folder with content raises ConfigurationError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield partial
        _apply_umask(partial)
        if path.is_dir() and any(path.iterdir()):
            _check_same(path, partial)
        else:
            partial.replace(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _apply_umask(folder: Path) -> None:
    """Give files and folders the usual modes of new files: temporary folders and files of safetensors are private."""
    umask = os.umask(0)  # the only way to read it
    os.umask(umask)
    for path in (folder, *folder.rglob("*")):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)


def _check_same(path: Path, partial: Path) -> None:
    try:
        same = snapshot_id(Snapshot.open(path)) == snapshot_id(Snapshot.open(partial))
    except ConfigurationError:
        same = False
    if not same:
        raise ConfigurationError(
            f"{path} is not empty and holds something else than this snapshot; name another folder or empty it"
        )


def write_tiny_files(path: Path, generator: torch.Generator) -> None:
    """Write the files of the tiny snapshot into the empty folder `path`."""
    _write_transformer(path, generator)
    vocabulary_size = _write_tokenizer(path / TOKENIZER_FOLDER)
    _write_text_encoder(path / TEXT_ENCODER_FILE, generator, vocabulary_size)
    _write_vae(path / VAE_FILE, generator)
    _write_audio_encoder(path / AUDIO_ENCODER_FOLDER, generator)
    Snapshot.open(path)


def _write_transformer(path: Path, generator: torch.Generator) -> None:
    _write_json(path / CONFIG_FILE, _TRANSFORMER_CONFIG)
    config = S2VConfig.from_json(_TRANSFORMER_CONFIG)
    state = draw(shapes_of(lambda: S2VTransformer(config)), generator, _TRANSFORMER_GAINS)
    show_reference_in_transformer(state, config.num_heads)
    # bfloat16, as the released shards are: a GPU then runs the production precision, a CPU the same numbers in float32.
    state = {name: value.to(torch.bfloat16) for name, value in state.items()}
    names = sorted(state)
    weight_map: dict[str, str] = {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        shard = f"diffusion_pytorch_model-{number:05}-of-00002.safetensors"
        save_file({name: state[name] for name in part}, path / shard)
        weight_map.update((name, shard) for name in part)
    total_size = sum(value.nbytes for value in state.values())
    _write_json(path / TRANSFORMER_INDEX_FILE, {"metadata": {"total_size": total_size}, "weight_map": weight_map})


def _write_tokenizer(path: Path) -> int:
    """Write a byte-level tokenizer with the special tokens of umT5 and return the size of its vocabulary."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY_SIZE,
        min_frequency=1,
        special_tokens=list(_SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TOKENIZER_TEXT, trainer)
    end = ("</s>", tokenizer.token_to_id("</s>"))
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[end])
    special = dict(zip(("pad_token", "eos_token", "unk_token"), _SPECIAL_TOKENS, strict=True))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    fast.save_pretrained(path)
    return len(fast)


def _write_text_encoder(path: Path, generator: torch.Generator, vocabulary_size: int) -> None:
    config = UMT5Config(vocab_size=vocabulary_size, d_model=_TEXT_DIM, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
    names = text_encoder.key_pairs(config.num_layers)
    shapes = shapes_of(lambda: UMT5EncoderModel(config), names)
    state = draw(shapes, generator, {"token_embedding": _TEXT_DIM**0.5, r"attn\.q": 8**-0.5})
    _save_pth({name: value.to(torch.bfloat16) for name, value in state.items()}, path)


def _write_vae(path: Path, generator: torch.Generator) -> None:
    shapes = shapes_of(lambda: AutoencoderKLWan(base_dim=_VAE_BASE_DIM), vae.key_pairs())
    state = draw(shapes, generator, _VAE_GAINS)
    show_pictures_in_vae(state)
    _save_pth(state, path)


def _write_audio_encoder(path: Path, generator: torch.Generator) -> None:
    """Write 24 layers, as the transformer reads 25 states; kernels and strides are the official ones."""
    config = Wav2Vec2Config(
        architectures=["Wav2Vec2ForCTC"],
        hidden_size=_AUDIO_DIM,
        num_hidden_layers=24,
        num_attention_heads=4,
        intermediate_size=48,
        conv_dim=(16,) * 7,
        conv_bias=True,
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
    )
    path.mkdir()
    config.to_json_file(path / CONFIG_FILE)
    save_file(
        draw(shapes_of(lambda: Wav2Vec2ForCTC(config)), generator, {}), path / "model.safetensors", {"format": "pt"}
    )
    _write_json(
        path / "preprocessor_config.json",
        {
            "do_normalize": True,
            "feature_extractor_type": "Wav2Vec2FeatureExtractor",
            "feature_size": 1,
            "padding_side": "right",
            "padding_value": 0.0,
            "return_attention_mask": True,
            "sampling_rate": 16000,
        },
    )


def _save_pth(state: Mapping[str, Tensor], path: Path) -> None:
    torch.save(dict(state), path)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
