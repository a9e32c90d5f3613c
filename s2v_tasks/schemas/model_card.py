"""Properties of models and GPUs that planning needs, read from config/models.yaml and config/gpus.yaml."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from s2v_tasks.errors import ConfigurationError, PermanentError
from s2v_tasks.schemas.config_files import read_yaml
from s2v_tasks.schemas.request_fields import Solver

Component = Literal["config", "transformer", "text_encoder", "tokenizer", "vae", "audio_encoder"]


class _Card(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str


class ModelCard(_Card):
    """Dimensions of a model, named as in its config.json if they occur there."""

    dim: int = Field(gt=0, description="Width of the transformer.")
    ffn_dim: int = Field(gt=0, description="Width of its feed-forward layers.")
    num_layers: int = Field(gt=0, description="Number of its blocks.")
    text_dim: int = Field(gt=0, description="Width of the text encoder's output.")
    text_len: int = Field(gt=0, description="Tokens of a prompt, padding included.")
    audio_inject_layers: tuple[int, ...] = Field(description="Blocks after which speech is injected.")
    transformer_parameters: int = Field(gt=0, description="Parameters of the transformer, kept in bfloat16.")
    vae_parameters: int = Field(gt=0, description="Parameters of the VAE, kept in float32.")
    vae_base_dim: int = Field(gt=0, description="Channels of the VAE at full resolution.")
    files: dict[Component, Path] = Field({}, description="Components that lie outside of the folder of the snapshot.")
    smallest_trained_area: int = Field(ge=0, description="Pixels of the smallest video it was trained for.")


class GpuCard(_Card):
    """Speed, memory and price of a GPU."""

    bf16_tflops: float = Field(
        gt=0, description="Dense bfloat16 peak, 1e12 operations per second, for the transformer."
    )
    tf32_tflops: float = Field(gt=0, description="Dense TF32 peak, 1e12 operations per second, for the VAE.")
    fp32_tflops: float = Field(gt=0, description="Float32 peak without TF32, 1e12 operations a second.")
    utilization: float = Field(gt=0, le=1, description="Share of its peak that the transformer is assumed to reach.")
    vae_utilization: float = Field(gt=0, le=1, description="Share of its peak that the VAE is assumed to reach.")
    load_gb_per_second: float = Field(gt=0, description="Speed at which weights reach the GPU, 1e9 bytes a second.")
    host_gb_per_second: float = Field(
        25.0, gt=0, description="Speed of copies from pinned host memory to the GPU, 1e9 bytes a second."
    )
    memory_gib: float = Field(gt=0, description="Memory of one GPU.")
    cost_per_hour: float = Field(ge=0, description="Price of one GPU for one hour.")
    currency: str = Field(pattern=r"^[A-Z]{3}$", description="Currency of the price, ISO 4217.")


class AdapterCard(_Card):
    """An adapter (LoRA): its file, its purpose, and recommended sampling."""

    path: Path = Field(description="Safetensors file: absolute, or relative to the folder that holds the snapshot.")
    sha256: str = Field(pattern="^[0-9a-f]{64}$", description="Digest of the file.")
    purpose: str = Field(description="Its purpose, for people who choose it.")
    warning: str | None = Field(None, description="Its drawbacks for users; each plan repeats them.")
    alpha: float | None = Field(None, gt=0, description="Numerator of the scale, if the file states none.")
    least_matched: float = Field(
        0.9, gt=0, le=1, description="Minimum share of its modules that must exist in the model."
    )
    sample_steps: int | None = Field(None, ge=1, le=100, description="Steps, if the request gives none.")
    sample_guide_scale: float | None = Field(
        None, ge=1, le=20, description="Guidance scale, if the request gives none."
    )
    sample_shift: float | None = Field(
        None, ge=1, le=20, description="Shift of the schedule, if the request gives none."
    )
    sample_solver: Solver | None = Field(None, description="Solver, if the request gives none.")


def load_adapter_cards(config_dir: Path) -> dict[str, AdapterCard]:
    """Return all adapters of `config_dir`/adapters.yaml by name, empty without the file; ConfigurationError if bad."""
    path = config_dir / "adapters.yaml"
    try:
        entries = read_yaml(path) if path.is_file() else {}
        return {name: AdapterCard.model_validate({"name": name, **card}) for name, card in (entries or {}).items()}
    except (OSError, yaml.YAMLError, ValidationError, TypeError, AttributeError) as error:
        raise ConfigurationError(f"{path} is not a valid file of adapters: {error}") from error


def find_adapter(cards: Mapping[str, AdapterCard], name: str) -> AdapterCard:
    """Return the adapter `name`; PermanentError with the known names if there is none."""
    if name not in cards:
        known = f"expected one of {', '.join(cards)}" if cards else "it has no entries; add one, or leave adapters out"
        raise PermanentError(f"adapter {name!r} is not an entry of adapters.yaml: {known}.")
    return cards[name]


def load_model_card(config_dir: Path, name: str) -> ModelCard:
    """Return the model `name` of `config_dir`/models.yaml; ConfigurationError if it is missing or not valid."""
    return _load(config_dir / "models.yaml", name, ModelCard, setting="S2V_MODEL")


def load_gpu_card(config_dir: Path, name: str) -> GpuCard:
    """Return the GPU `name` of `config_dir`/gpus.yaml; ConfigurationError if it is missing or not valid."""
    return _load(config_dir / "gpus.yaml", name, GpuCard, setting="S2V_GPU")


Card = TypeVar("Card", bound=_Card)


def _load(path: Path, name: str, card: type[Card], *, setting: str) -> Card:
    try:
        entries = read_yaml(path)
        if name not in entries:
            raise ConfigurationError(
                f"{setting}={name!r} is not an entry of {path}: expected one of {', '.join(entries)}."
            )
        return card.model_validate({"name": name, **entries[name]})
    except (OSError, yaml.YAMLError, ValidationError, TypeError) as error:
        raise ConfigurationError(f"{path} is not a valid file of {card.__name__} entries: {error}") from error
