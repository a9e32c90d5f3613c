"""Check the text encoder, the VAE and the audio encoder."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from transformers import AutoTokenizer, Wav2Vec2FeatureExtractor

from s2v_tasks.engine.conditions import NEGATIVE_PROMPT
from s2v_tasks.engine.encoders import text_encoder, vae
from s2v_tasks.engine.encoders.audio_encoder import AudioEncoder, normalise
from s2v_tasks.engine.encoders.text_encoder import TextEncoder, clean_prompt
from s2v_tasks.engine.encoders.vae import Vae
from s2v_tasks.engine.loading import Snapshot
from s2v_tasks.engine.loading.snapshot import (
    AUDIO_ENCODER_FOLDER,
    TEXT_ENCODER_FILE,
    TOKENIZER_FILE,
    TOKENIZER_FOLDER,
    VAE_FILE,
)
from s2v_tasks.engine.loading.weights import read_pth
from s2v_tasks.errors import ConfigurationError, PermanentError


@pytest.fixture(scope="module")
def snapshot(tiny_snapshot_path: Path) -> Snapshot:
    """The tiny snapshot, opened."""
    return Snapshot.open(tiny_snapshot_path)


@pytest.fixture(scope="module")
def texts(snapshot: Snapshot) -> TextEncoder:
    """The tiny text encoder."""
    return snapshot.load_text_encoder("cpu")


def _speech(num_samples: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(num_samples, dtype=np.float32) * 0.1


def published(name: str) -> dict[str, Tensor]:
    """Return keys, shapes and dtypes of a published weight file, as tensors without data."""
    rows = (line.split("\t") for line in Path(__file__).with_name(name).read_text().splitlines()[1:])
    return {
        key: torch.empty([int(side) for side in shape.split("x")], dtype=getattr(torch, dtype), device="meta")
        for key, shape, dtype in rows
    }


def test_published_text_encoder_fits() -> None:
    """The 242 keys and shapes of the released umT5 file are those of the encoder, none missing, none left over."""
    state = published("t5_umt5xxl_state_dict.tsv")
    assert set(dict(text_encoder.key_pairs(24))) == state.keys()
    # On the meta device the check for tensors without data is all that is left to object.
    with pytest.raises(ConfigurationError, match="tensors that no file fills"):
        text_encoder.build_umt5(state, "meta")
    for key in ("blocks.7.attn.k.weight", "norm.weight"):
        with pytest.raises(ConfigurationError, match="missing"):
            text_encoder.build_umt5({name: value for name, value in state.items() if name != key}, "meta")
    with pytest.raises(ConfigurationError, match="unexpected: surplus"):
        text_encoder.build_umt5({**state, "surplus": state["norm.weight"]}, "meta")


def test_published_vae_fits() -> None:
    """The 194 keys and shapes of the released VAE file are those of the VAE, none missing, none left over."""
    state = published("vae_wan21_state_dict.tsv")
    assert set(dict(vae.key_pairs())) == state.keys()
    with pytest.raises(ConfigurationError, match="tensors that no file fills"):
        Vae.from_state_dict(state, "meta")
    key = "decoder.upsamples.3.time_conv.weight"
    with pytest.raises(ConfigurationError, match=r"of another shape: decoder\.up_blocks\.0"):
        Vae.from_state_dict({**state, key: state[key][:1]}, "meta")


def test_the_text_encoder_does_not_fuse_its_attention(snapshot: Snapshot) -> None:
    """In bf16 fused attention gives other contexts than the original; in fp32 no tolerance of a golden shows it."""
    state = read_pth(snapshot.text_encoder_path, "cpu")
    assert text_encoder.build_umt5(state, "cpu").config._attn_implementation == "eager"


def test_constants_of_the_release_are_unchanged() -> None:
    """Statistics of the latents are those of the library; the negative prompt has the digest of the released text."""
    with torch.device("meta"):
        library = AutoencoderKLWan(base_dim=8).config
    assert (tuple(library.latents_mean), tuple(library.latents_std)) == (vae.LATENT_MEAN, vae.LATENT_STD)
    assert hashlib.sha256(NEGATIVE_PROMPT.encode()).hexdigest().startswith("98afffdba82fbb1f87767b2e0d022cb2")


def test_speech_is_normalised_as_by_the_library() -> None:
    """The input of the audio encoder equals that of the feature extractor of the release."""
    waveform = _speech(16000) * 0.3 + 0.1
    library = Wav2Vec2FeatureExtractor(do_normalize=True, sampling_rate=16000)
    (expected,) = library(waveform, sampling_rate=16000).input_values
    np.testing.assert_allclose(normalise(waveform), expected, rtol=0, atol=1e-5)


def test_vae_frame_counts(snapshot: Snapshot) -> None:
    """T frames give 1 + (T-1)//4 latents, surplus frames change nothing, Z latents give 4Z - 3 frames."""
    codec = snapshot.load_vae("cpu")
    pixels = torch.rand(1, 3, 11, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents = codec.encode(pixels)
    assert latents.shape == (1, 16, 3, 2, 3)
    torch.testing.assert_close(latents, codec.encode(pixels[:, :, :9]), rtol=0, atol=0)
    decoded = codec.decode(latents)
    assert decoded.shape == (1, 3, 9, 16, 24)
    assert decoded.abs().max() <= 1


def test_vae_is_causal(snapshot: Snapshot) -> None:
    """A frame changes its own latent and later ones only."""
    codec = snapshot.load_vae("cpu")
    pixels = torch.zeros(1, 3, 9, 16, 16)
    changed = pixels.clone()
    changed[:, :, 5] = 1
    difference = (codec.encode(changed) - codec.encode(pixels)).abs().amax(dim=(0, 1, 3, 4))
    assert difference[:2].max() == 0
    assert difference[2] > 0


def test_vae_decodes_the_end_alone_for_less(snapshot: Snapshot) -> None:
    """Decoding the last frames alone gives the same bits as decoding all, and skips frames in the last level."""
    codec = snapshot.load_vae("cpu")
    latents = torch.randn(1, 16, 12, 2, 3, generator=torch.Generator().manual_seed(0))
    calls: list[int] = []
    codec.model.decoder.conv_out.register_forward_pre_hook(lambda *_: calls.append(1))
    whole = codec.decode(latents)
    # The first latent is one frame, each other one four, which pass the last level in two calls.
    for num_frames, calls_of_last_level in ((45, 23), (44, 23), (8, 12), (5, 12), (1, 10)):
        calls.clear()
        torch.testing.assert_close(codec.decode(latents, num_frames), whole[:, :, -num_frames:], rtol=0, atol=0)
        assert len(calls) == calls_of_last_level


def test_each_level_of_the_decoder_skips_what_it_can() -> None:
    """For 80 frames after 73 old ones, the levels of the released decoder start at latents 0, 5, 12 and 15."""
    with torch.device("meta"):
        model = AutoencoderKLWan()
    calls = [0, 0, 0, 0]

    def count(level: int) -> None:
        calls[level] += 1

    for level, block in enumerate(model.decoder.up_blocks):
        block.resnets[0].register_forward_pre_hook(lambda *_, level=level: count(level))
    list(Vae(model, "meta").decode_pieces(torch.empty(1, 16, 39, 8, 8, device="meta"), 80))
    # The last two levels take the four frames of a latent in two calls.
    assert calls == [39 - 0, 39 - 5, 2 * (39 - 12), 2 * (39 - 15)]


def test_a_bfloat16_vae_is_close_to_the_float32_one(snapshot: Snapshot) -> None:
    """Weights are bfloat16 with channels last; encoding and decoding differ by rounding, results stay float32."""
    exact, rounded = snapshot.load_vae("cpu"), snapshot.load_vae("cpu", "bfloat16")
    weight = rounded.model.decoder.conv_in.weight
    assert weight.dtype == torch.bfloat16
    assert weight.is_contiguous(memory_format=torch.channels_last_3d)
    pixels = torch.rand(1, 3, 9, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents = [codec.encode(pixels) for codec in (exact, rounded)]
    frames = [codec.decode(latents[0]) for codec in (exact, rounded)]
    for one, other in (latents, frames):
        assert other.dtype == torch.float32
        assert 0 < (other - one).norm() / one.norm() < 0.05


def test_vae_names_weights_that_do_not_fit(tiny_snapshot_path: Path) -> None:
    """Missing, unexpected and misshapen weights are configuration errors that name them."""
    state = read_pth(tiny_snapshot_path / VAE_FILE, "cpu")
    bias = state.pop("decoder.head.2.bias")
    with pytest.raises(ConfigurationError, match=r"missing: decoder\.conv_out\.bias"):
        Vae.from_state_dict(state, "cpu")
    with pytest.raises(ConfigurationError, match="unexpected: surplus"):
        Vae.from_state_dict({**state, "decoder.head.2.bias": bias, "surplus": bias}, "cpu")
    with pytest.raises(ConfigurationError, match=r"\[4\] instead of \[3\]"):
        Vae.from_state_dict({**state, "decoder.head.2.bias": torch.zeros(4)}, "cpu")


def test_prompt_is_cleaned() -> None:
    """Broken Unicode, doubly escaped entities and white space are repaired before the prompt is tokenized."""
    assert clean_prompt("  <b>It&amp;#39;s \n\t a caf\u00c3\u00a9 ") == "<b>It's a caf\u00e9"


def test_context_has_one_row_per_token(texts: TextEncoder, tiny_snapshot_path: Path) -> None:
    """The context holds the rows of the prompt's tokens and nothing of the padding."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_snapshot_path / TOKENIZER_FOLDER)
    for prompt in ("a woman speaks", "", NEGATIVE_PROMPT, "\U0001f600 \u0416\u0446"):
        context = texts.encode(prompt)
        assert context.shape == (len(tokenizer(prompt).input_ids), 32)
        assert context.isfinite().all()
    assert tokenizer("a woman speaks").input_ids[-1] == tokenizer.eos_token_id


def test_tokens_are_those_of_the_tokenizer_file(tiny_snapshot_path: Path, tmp_path: Path) -> None:
    """Normalisation, division into words and the unknown token are those of tokenizer.json, and nothing is cut off."""
    special = ("<pad>", "</s>", "<s>", "<unk>")
    vocabulary = [(token, 0.0) for token in special] + [("\u2581", -1.0), ("a", -2.0), ("1", -3.0)]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=3))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.enable_truncation(2)
    tokenizer.save(str(tmp_path / TOKENIZER_FILE))
    # The release has such a file, without a config.json that names the model.
    names = {"tokenizer_class": "T5Tokenizer", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(names))
    state = read_pth(tiny_snapshot_path / TEXT_ENCODER_FILE, "cpu")
    context = TextEncoder.from_state_dict(state, tmp_path, text_len=8, device="cpu").encode("a \u2460 \u2603")
    ids = torch.tensor([[5, 4, 6, 4, 3, 1, 0, 0]])  # a, space, 1, space, unknown, end
    (expected,) = text_encoder.encode_ids(text_encoder.build_umt5(state, "cpu"), ids, (ids > 0).long())
    torch.testing.assert_close(context, expected.float(), rtol=0, atol=0)


def test_damaged_tokenizer_is_named(tiny_snapshot_path: Path, tmp_path: Path) -> None:
    """A tokenizer file that ends early is a configuration error with its path."""
    content = (tiny_snapshot_path / TOKENIZER_FOLDER / TOKENIZER_FILE).read_text()
    (tmp_path / TOKENIZER_FILE).write_text(content[: len(content) // 2])
    with pytest.raises(ConfigurationError, match=r"tokenizer\.json cannot be read as a tokenizer"):
        TextEncoder.from_state_dict({}, tmp_path, text_len=512, device="cpu")


def test_context_depends_on_the_prompt_only(texts: TextEncoder) -> None:
    """Equal prompts give equal contexts, other prompts other ones."""
    first = texts.encode("a woman speaks")
    torch.testing.assert_close(texts.encode(" a  woman speaks\n"), first, rtol=0, atol=0)
    assert (texts.encode("a woman sings")[:2] - first[:2]).abs().max() > 1e-3


def test_too_long_prompt_is_refused(texts: TextEncoder) -> None:
    """A prompt beyond the limit is an error with its length and the limit, and is never truncated."""
    assert texts.encode("a " * 511).shape[0] == 512
    with pytest.raises(PermanentError, match="513 tokens, the model reads at most 512"):
        texts.encode("a " * 512)


def test_last_audio_state_is_normalised(snapshot: Snapshot) -> None:
    """There are 25 states, and the last one is taken after the encoder's final norm (mean 0, variance 1)."""
    states = snapshot.load_audio_encoder("cpu").encode(_speech(8000))
    assert states.shape == (25, 24, 32)
    torch.testing.assert_close(states[24].mean(dim=1), torch.zeros(24), rtol=0, atol=1e-5)
    torch.testing.assert_close(states[24].var(dim=1, unbiased=False), torch.ones(24), rtol=0, atol=1e-3)
    assert states[23].var() > 2


def test_speech_is_encoded_in_float32_on_a_gpu_too(snapshot: Snapshot) -> None:
    """TF32 is switched off for convolutions while speech is encoded, and restored afterwards."""
    encoder = snapshot.load_audio_encoder("cpu")
    allowed: list[bool] = []
    encoder._model.register_forward_pre_hook(lambda *_: allowed.append(torch.backends.cudnn.allow_tf32))
    encoder.encode(_speech(16000))
    assert (allowed, torch.backends.cudnn.allow_tf32) == ([False], True)


def test_loudness_does_not_matter(snapshot: Snapshot) -> None:
    """Speech is normalised over the utterance: a louder copy with an offset gives the same states."""
    encoder = snapshot.load_audio_encoder("cpu")
    quiet = encoder.encode(_speech(8000))
    torch.testing.assert_close(encoder.encode(_speech(8000) * 5 + 0.25), quiet, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(
    "waveform",
    [np.zeros((2, 8000), np.float32), np.zeros(8000), np.zeros(399, np.float32), np.full(8000, np.nan, np.float32)],
)
def test_unusable_speech_is_refused(waveform: np.ndarray) -> None:
    """Stereo, float64, too short and non-finite speech are permanent errors."""
    with pytest.raises(PermanentError, match="speech of"):
        normalise(waveform)


def test_other_audio_encoder_is_refused(tiny_snapshot_path: Path) -> None:
    """An audio encoder with another number of layers is a configuration error."""
    source = tiny_snapshot_path / AUDIO_ENCODER_FOLDER
    state, config = load_file(source / "model.safetensors"), json.loads((source / "config.json").read_text())
    with pytest.raises(ConfigurationError, match=r"unexpected: encoder\.layers\.23"):
        AudioEncoder.from_state_dict(state, config | {"num_hidden_layers": 23})
    fewer = {key: value for key, value in state.items() if ".layers.23." not in key}
    with pytest.raises(ConfigurationError, match="23 layers; the transformer reads 24"):
        AudioEncoder.from_state_dict(fewer, config | {"num_hidden_layers": 23})


def test_an_audio_encoder_with_older_names_of_the_weight_norm_is_the_same(tiny_snapshot_path: Path) -> None:
    """Files of older libraries name scale and direction of the position convolution `weight_g` and `weight_v`."""
    source = tiny_snapshot_path / AUDIO_ENCODER_FOLDER
    state, config = load_file(source / "model.safetensors"), json.loads((source / "config.json").read_text())
    older = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    scale = next(key for key in state if key.endswith("original0"))
    state[scale] = state[scale] * torch.arange(1.0, 1.0 + state[scale].numel()).view_as(state[scale])
    renamed = {
        key.replace(name := next((n for n in older if n in key), "-"), older.get(name, "-")): value
        for key, value in state.items()
    }
    assert sum(key.endswith(("weight_g", "weight_v")) for key in renamed) == 2
    expected, states = (AudioEncoder.from_state_dict(one, config).encode(_speech(4000)) for one in (state, renamed))
    assert torch.equal(states, expected)
