"""Weights of the blocks in float8, by torchao: half the memory of bf16, at some loss of precision."""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Literal

import torch
from torch import Tensor, nn

from s2v_tasks.engine.models.layers import Linear
from s2v_tasks.engine.models.transformer import S2VTransformer
from s2v_tasks.errors import ConfigurationError

_DYNAMIC_CAPABILITY = (8, 9)  # the first GPUs that multiply float8


def is_quantized(module: nn.Module, name: str) -> bool:
    """Return whether a module gets float8 weights: the wide matrix products within the blocks.

    Norms, modulation, embeddings, audio modules and head keep the precision that the model was released with.
    """
    return name.startswith("blocks.") and isinstance(module, Linear)


def quantizer(
    transformer: S2VTransformer, kind: Literal["fp8", "fp8-dynamic"], device: torch.device
) -> Callable[[str, Tensor], Tensor]:
    """Return the conversion that the loader applies to each weight of `transformer`: those of the blocks become float8.

    Each has a scale per row. "fp8" multiplies in the dtype of the run, "fp8-dynamic" in float8 with activations
    scaled row by row. A weight is converted when it is read, so that few whole ones are in memory at a time.

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
    chosen = {f"{name}.weight" for name, module in transformer.named_modules() if is_quantized(module, name)}

    def convert(key: str, weight: Tensor) -> Tensor:
        if key not in chosen:
            return weight
        # torchao converts modules: build one for this weight.
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        linear.weight = nn.Parameter(weight, requires_grad=False)
        quantize_(linear, config)
        return linear.weight

    return convert
