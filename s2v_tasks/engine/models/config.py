"""The transformer's configuration, as the snapshot's `config.json` states it (spec a)."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from s2v_tasks.errors import ConfigurationError

# Values of the released checkpoint: this code does not support other values, which mean another architecture.
_FIXED: dict[str, Any] = {
    "model_type": "s2v",
    "patch_size": [1, 2, 2],
    "window_size": [-1, -1],
    "qk_norm": True,
    "cross_attn_norm": True,
    "enable_adain": True,
    "adain_mode": "attn_norm",
    "zero_timestep": True,
    "enable_motioner": False,
    "enable_framepack": True,
    "enable_tsm": False,
    "trainable_token_pos_emb": False,
}
_MODEL = "Wan2.2-S2V-14B"
_REMEDY = f"Use the folder of {_MODEL}: other models of Wan, and repositories in the layout of diffusers, do not fit."
# Written by the serializer, or used only in training.
_IGNORED = {"_class_name", "_diffusers_version", "zero_init", "motion_token_num"}


@dataclass(frozen=True)
class S2VConfig:
    """Dimensions of the transformer; the defaults are those of Wan2.2-S2V-14B."""

    dim: int = 5120
    ffn_dim: int = 13824
    num_heads: int = 40
    num_layers: int = 40
    in_dim: int = 16
    out_dim: int = 16
    freq_dim: int = 256
    text_dim: int = 4096
    text_len: int = 512
    cond_dim: int = 16
    audio_dim: int = 1024
    num_audio_token: int = 4
    audio_inject_layers: tuple[int, ...] = (0, 4, 8, 12, 16, 20, 24, 27, 30, 33, 36, 39)
    eps: float = 1e-6
    add_last_motion: bool = True
    framepack_drop_mode: str = "padd"

    @property
    def head_dim(self) -> int:
        """Return the width of one attention head."""
        return self.dim // self.num_heads

    @classmethod
    def from_json(cls, values: Mapping[str, Any], *, source: str = "config.json") -> "S2VConfig":
        """Build from the content of `config.json`; `source` names the file in errors.

        Unknown fields are ignored if the file states this model; keys and shapes of the weights are compared later.
        Raises ConfigurationError for another model, another architecture than the released one, or dimensions that do
        not match.
        """
        names = {field.name for field in fields(cls)}
        unknown = unknown_fields(values)
        if unknown and "model_type" not in values:
            raise ConfigurationError(
                f"{source} has unknown fields {unknown} and no model_type; expected the fields of {_MODEL}. {_REMEDY}"
            )
        for name, expected in _FIXED.items():
            value = values.get(name, expected)
            value = list(value) if isinstance(value, tuple) else value
            if value != expected:
                raise ConfigurationError(f"{source} has {name}={value!r}; only {expected!r} is supported. {_REMEDY}")
        known = {name: value for name, value in values.items() if name in names}
        if "audio_inject_layers" in known:
            known["audio_inject_layers"] = tuple(known["audio_inject_layers"])
        config = cls(**known)
        config._check(source)
        return config

    def _check(self, source: str) -> None:
        layers = self.audio_inject_layers
        problems = {
            f"dim {self.dim} is not divisible by num_heads {self.num_heads}": self.dim % self.num_heads,
            f"head width {self.dim / self.num_heads} is not even": self.head_dim % 2,
            f"dim {self.dim} is not divisible by 4 (audio encoder)": self.dim % 4,
            f"freq_dim {self.freq_dim} is not even": self.freq_dim % 2,
            f"audio_inject_layers {layers} are not layers 0..{self.num_layers - 1} in ascending order": (
                list(layers) != sorted(set(layers) & set(range(self.num_layers)))
            ),
            f"framepack_drop_mode {self.framepack_drop_mode!r} is not 'padd' or 'drop'": (
                self.framepack_drop_mode not in ("padd", "drop")
            ),
        }
        found = [text for text, wrong in problems.items() if wrong]
        if found:
            raise ConfigurationError(f"{source} is inconsistent: {'; '.join(found)}. Restore the snapshot's file.")


def unknown_fields(values: Mapping[str, Any]) -> list[str]:
    """Return the fields of a config.json that this engine neither uses nor knows to be without effect, sorted."""
    return sorted(values.keys() - {field.name for field in fields(S2VConfig)} - _FIXED.keys() - _IGNORED)
