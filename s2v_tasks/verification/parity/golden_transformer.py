"""The transformer of a folder of goldens (the `dit_*` file whose metadata has a `config`), on one or several ranks."""

from pathlib import Path

import torch.distributed as dist
from safetensors import safe_open

from s2v_tasks.engine.distributed.mesh import BranchSplit, Layout, choose_layout, parallelize
from s2v_tasks.engine.models.config import S2VConfig
from s2v_tasks.engine.models.transformer import S2VTransformer
from s2v_tasks.errors import ConfigurationError
from s2v_tasks.verification.parity.results import CPU_FLOAT32, Target, load_golden


def load_transformer(folder: Path, target: Target = CPU_FLOAT32) -> S2VTransformer:
    """Load the golden weights of `folder` into a transformer, strictly.

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


def num_ranks() -> int:
    """Return the number of ranks of the process group; 1 without a group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def share_among_ranks(model: S2VTransformer, layout: Layout | None, *, guided: bool) -> BranchSplit | None:
    """Let all ranks compute a case together, in `layout` or in the one that a render chooses.

    A case without guidance runs alike in both groups of a layout with cfg 2.
    """
    world_size = num_ranks()
    if world_size == 1 and layout is None:
        return None
    if layout is None:
        heads = model.config.num_heads
        layout = choose_layout(world_size, heads, guided=guided or heads % world_size != 0)
    return parallelize(model, layout, "cpu", guided=True)
