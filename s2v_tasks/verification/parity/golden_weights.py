"""The transformer of a folder of goldens: the `dit_*` file whose metadata has a `config`."""

from pathlib import Path

from safetensors import safe_open

from s2v_tasks.engine.models.config import S2VConfig
from s2v_tasks.engine.models.transformer import S2VTransformer
from s2v_tasks.errors import ConfigurationError
from s2v_tasks.verification.parity.results import CPU_FLOAT32, Target, load_golden


def load_transformer(folder: Path, target: Target = CPU_FLOAT32) -> S2VTransformer:
    """The transformer of the folder's golden weights, loaded strictly.

    Raises ConfigurationError when the folder has no such weights or when keys or shapes differ.
    """
    for path in sorted(folder.glob("dit_*.safetensors")):
        if is_weights(path):
            golden = load_golden(path)
            model = S2VTransformer(S2VConfig.from_json(golden.metadata["config"]))
            try:
                model.load_state_dict(golden.tensors)
            except RuntimeError as error:
                raise ConfigurationError(f"{path.name} does not fit its own config: {error}") from error
            return model.requires_grad_(requires_grad=False).to(target.device, target.dtype)
    raise ConfigurationError(f"{folder} has no dit_*.safetensors with a 'config' in its metadata; add the weights")


def is_weights(path: Path) -> bool:
    """Return whether a golden file holds the weights of a transformer."""
    with safe_open(path, framework="pt") as file:
        return "config" in (file.metadata() or {})
