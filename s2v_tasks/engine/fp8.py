"""Weights of the blocks in float8, by torchao: half the memory of bf16, at some loss of precision."""

from importlib.util import find_spec
from typing import Literal

import torch
from torch import nn

from s2v_tasks.engine.models.layers import Linear
from s2v_tasks.engine.models.transformer import S2VTransformer
from s2v_tasks.errors import ConfigurationError

_DYNAMIC_CAPABILITY = (8, 9)  # the first GPUs that multiply float8


def is_quantized(module: nn.Module, name: str) -> bool:
    """Whether a module of the transformer gets float8 weights: the wide matrix products within the blocks.

    Norms, modulation, embeddings, sound and head keep the precision that the model was released with.
    """
    return name.startswith("blocks.") and isinstance(module, Linear)


def quantize(transformer: S2VTransformer, kind: Literal["fp8", "fp8-dynamic"], device: torch.device) -> None:
    """Turn the weights of the blocks into float8 with a scale per row and move the transformer to `device`.

    "fp8" multiplies in the dtype of the run, "fp8-dynamic" in float8 with activations scaled row by row. The
    transformer may lie on the CPU, mapped to its files: of a device's memory only the result is taken.

    Raises ConfigurationError where torchao is not installed or the device cannot multiply float8.
    """
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    if kind == "fp8-dynamic" and (capability is None or capability < _DYNAMIC_CAPABILITY):
        raise ConfigurationError(
            f"weights in {kind} need a GPU of compute capability 8.9 or more, this device is {device.type}"
            f"{'' if capability is None else ' {}.{}'.format(*capability)}; set S2V_WEIGHTS_DTYPE=fp8 or auto"
        )
    if find_spec("torchao") is None:
        raise ConfigurationError(
            f"weights in {kind} need the Python module torchao, which is not installed; "
            "install s2v-tasks[fp8] or set S2V_WEIGHTS_DTYPE=auto"
        )
    from torchao.quantization import (
        Float8DynamicActivationFloat8WeightConfig,
        Float8WeightOnlyConfig,
        PerRow,
        quantize_,
    )

    config = (
        Float8WeightOnlyConfig() if kind == "fp8" else Float8DynamicActivationFloat8WeightConfig(granularity=PerRow())
    )
    quantize_(transformer, config, filter_fn=is_quantized, device=device)
    transformer.to(device).requires_grad_(requires_grad=False)
