"""Prompts to context rows with umT5-XXL, on transformers' UMT5EncoderModel (spec a.1, d.5).

Shapes: S token positions, D text width.
"""

import html
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import ftfy
import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import UMT5Config, UMT5EncoderModel

from s2v_tasks.engine.loading.snapshot import TOKENIZER_FILE
from s2v_tasks.engine.loading.weights import assign_weights
from s2v_tasks.errors import ConfigurationError, PermanentError

_MAX_DISTANCE = 128

_BLOCK_KEYS = (
    ("norm1", "layer.0.layer_norm"),
    ("attn.q", "layer.0.SelfAttention.q"),
    ("attn.k", "layer.0.SelfAttention.k"),
    ("attn.v", "layer.0.SelfAttention.v"),
    ("attn.o", "layer.0.SelfAttention.o"),
    ("pos_embedding.embedding", "layer.0.SelfAttention.relative_attention_bias"),
    ("norm2", "layer.1.layer_norm"),
    ("ffn.gate.0", "layer.1.DenseReluDense.wi_0"),
    ("ffn.fc1", "layer.1.DenseReluDense.wi_1"),
    ("ffn.fc2", "layer.1.DenseReluDense.wo"),
)


class TextEncoder:
    """The encoder computes in the dtype of its weights (bfloat16 in the released file)."""

    def __init__(self, model: UMT5EncoderModel, tokenizer: Tokenizer, text_len: int) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._text_len = text_len

    @classmethod
    def from_state_dict(
        cls, state: Mapping[str, Tensor], tokenizer_path: Path, *, text_len: int, device: torch.device | str
    ) -> "TextEncoder":
        """Build from weights with the official keys and the tokenizer folder of the snapshot.

        Raises ConfigurationError if weights or tokenizer do not belong to a umT5 encoder.
        """
        tokenizer = read_tokenizer(tokenizer_path)
        model = build_umt5(state, device)
        if tokenizer.get_vocab_size() > model.config.vocab_size:
            raise ConfigurationError(
                f"the tokenizer in {tokenizer_path} has {tokenizer.get_vocab_size()} tokens, the text encoder only "
                f"{model.config.vocab_size} embeddings; use the tokenizer that belongs to the snapshot"
            )
        return cls(model, tokenizer, text_len)

    @torch.inference_mode()
    def encode(self, prompt: str) -> Tensor:
        """Return the context rows of a prompt, float32 [num_tokens, D], num_tokens <= text_len.

        Raises PermanentError for a prompt of more than `text_len` tokens, instead of truncating it silently.
        """
        text = clean_prompt(prompt)
        ids = self._tokenizer.encode(text).ids
        num_tokens = len(ids)
        if num_tokens > self._text_len:
            raise PermanentError(
                f"the prompt has {num_tokens} tokens, the model reads at most {self._text_len}; shorten it "
                f"(it starts with {text[:40]!r})"
            )
        ids_BS = torch.tensor([ids + [0] * (self._text_len - num_tokens)], device=self._model.device)
        mask_BS = (torch.arange(self._text_len, device=self._model.device) < num_tokens)[None].long()
        return encode_ids(self._model, ids_BS, mask_BS)[0].float()


def read_tokenizer(folder: Path) -> Tokenizer:
    """Return the tokenizer of the file `tokenizer.json` in `folder`, without padding and truncation.

    transformers 5 would build a tokenizer for T5 with the vocabulary of this file, but with another normalisation,
    division into words and handling of unknown characters. Raises ConfigurationError if the file is damaged.
    """
    path = folder / TOKENIZER_FILE
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises this class
        raise ConfigurationError(f"{path} cannot be read as a tokenizer ({error}); download it again") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def build_umt5(state: Mapping[str, Tensor], device: torch.device | str) -> UMT5EncoderModel:
    """Return the encoder for weights with the official keys; all dimensions are read from their shapes."""
    try:
        vocab_size, width = state["token_embedding.weight"].shape
        num_buckets, num_heads = state["blocks.0.pos_embedding.embedding.weight"].shape
        inner_width = state["blocks.0.attn.q.weight"].shape[0]
        ffn_width = state["blocks.0.ffn.fc1.weight"].shape[0]
    except KeyError as error:
        raise ConfigurationError(f"the weights have no {error}: they are not the umT5 text encoder") from error
    num_layers = 1 + max(int(key.split(".")[1]) for key in state if key.startswith("blocks."))
    config = UMT5Config(
        vocab_size=vocab_size,
        d_model=width,
        d_kv=inner_width // num_heads,
        d_ff=ffn_width,
        num_layers=num_layers,
        num_heads=num_heads,
        relative_attention_num_buckets=num_buckets,
        relative_attention_max_distance=_MAX_DISTANCE,
        feed_forward_proj="gated-gelu",
        layer_norm_epsilon=1e-6,
        # The fused attention of the library differs from the original by up to 0.3 in bfloat16.
        attn_implementation="eager",
    )
    with torch.device("meta"):
        model = UMT5EncoderModel(config)
    names = dict(key_pairs(num_layers))
    renamed = {names.get(key, key): value.to(device) for key, value in state.items()}
    renamed["encoder.embed_tokens.weight"] = renamed["shared.weight"]
    assign_weights(model, renamed, source="the text encoder")
    return model


@torch.inference_mode()
def encode_ids(model: UMT5EncoderModel, ids_BS: Tensor, mask_BS: Tensor) -> list[Tensor]:
    """Return the valid rows of each tokenized text, [num_tokens, D]; the mask is 1 for tokens, then 0 for padding."""
    rows_BSD = model(input_ids=ids_BS, attention_mask=mask_BS).last_hidden_state
    return [rows_SD[:length] for rows_SD, length in zip(rows_BSD, mask_BS.sum(dim=1).tolist(), strict=True)]


def clean_prompt(prompt: str) -> str:
    """Repair broken Unicode, resolve HTML entities (also doubly escaped ones) and collapse white space."""
    text = html.unescape(html.unescape(ftfy.fix_text(prompt)))
    return re.sub(r"\s+", " ", text).strip()


def key_pairs(num_layers: int) -> Iterator[tuple[str, str]]:
    """Return all (official key, transformers key) pairs of an encoder with `num_layers` blocks."""
    yield "token_embedding.weight", "shared.weight"
    yield "norm.weight", "encoder.final_layer_norm.weight"
    for index in range(num_layers):
        for official, library in _BLOCK_KEYS:
            yield f"blocks.{index}.{official}.weight", f"encoder.block.{index}.{library}.weight"
