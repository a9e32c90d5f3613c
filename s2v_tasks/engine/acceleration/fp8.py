"""Weights of the blocks in float8, by torchao: half the memory of bf16, at some loss of precision."""

from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor, nn

from s2v_tasks.engine.models.layers import Linear
from s2v_tasks.engine.models.transformer import S2VTransformer
from s2v_tasks.errors import ConfigurationError

_DYNAMIC_CAPABILITY = (8, 9)  # the first GPUs that multiply float8


def is_quantized(module: nn.Module, name: str) -> bool:
    """Return True if a module gets float8 weights: the large matrices of the blocks.

    Norms, modulation, embeddings, audio modules and head keep the released precision.
    """
    return name.startswith("blocks.") and isinstance(module, Linear)


class Float8Weights:
    """Keeps the weights of the blocks in float8, with a scale per row. Called by the loader for each weight it reads.

    "fp8" multiplies in `dtype`, the dtype of the run; "fp8-dynamic" multiplies in float8 with activations scaled row by
    row. A weight is converted when it is read, so that only few full weights are in memory at a time.

    Raises ConfigurationError if torchao is not installed or the device cannot multiply float8.
    """

    def __init__(
        self,
        transformer: S2VTransformer,
        kind: Literal["fp8", "fp8-dynamic"],
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        _check(kind, device)
        self._kind, self._dtype = kind, dtype
        self.keys = frozenset(
            f"{name}.weight" for name, module in transformer.named_modules() if is_quantized(module, name)
        )

    def __call__(self, key: str, weight: Tensor) -> Tensor:
        """Return a weight in the form in which it is kept: float8 for the large matrices of a block."""
        kept: Tensor = self._quantize(weight) if key in self.keys else weight
        return kept

    def from_file(self, values: Tensor, scale: Tensor) -> Tensor:
        """Return a float8 weight of a file: `values` [rows, columns] times `scale`.

        The scale is one number, or one for each row. Nothing is rounded again.
        """
        # torchao defines the attributes of such a weight; only values and scales come from the file.
        example = self._quantize(torch.zeros(16, 16, dtype=self._dtype, device=values.device))
        rows, columns = values.shape
        weight: Tensor = type(example)(
            values,
            scale.to(values.device, torch.float32).reshape(-1, 1).expand(rows, 1).contiguous(),
            block_size=[1, columns],
            mm_config=example.mm_config,
            act_quant_kwargs=example.act_quant_kwargs,
            kernel_preference=example.kernel_preference,
            dtype=self._dtype,
        )
        return weight

    def _quantize(self, weight: Tensor) -> Any:
        from torchao.quantization import (
            Float8DynamicActivationFloat8WeightConfig,
            Float8WeightOnlyConfig,
            PerRow,
            quantize_,
        )

        # By default torchao makes the compiler tune each kernel of this process by measurement, which takes longer.
        config = (
            Float8WeightOnlyConfig(set_inductor_config=False)
            if self._kind == "fp8"
            else Float8DynamicActivationFloat8WeightConfig(granularity=PerRow(), set_inductor_config=False)
        )
        # torchao converts modules: build one for this weight.
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        linear.weight = nn.Parameter(weight, requires_grad=False)
        quantize_(linear, config)
        return linear.weight


def _check(kind: str, device: torch.device) -> None:
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    if kind == "fp8-dynamic" and (capability is None or capability < _DYNAMIC_CAPABILITY):
        raise ConfigurationError(
            f"weights in {kind} need a GPU of compute capability 8.9 or more, this device is {device.type}"
            f"{'' if capability is None else ' {}.{}'.format(*capability)}; set S2V_WEIGHTS_DTYPE=fp8 or auto"
        )
    if find_spec("torchao") is None:
        raise ConfigurationError(
            f"weights in {kind} need the Python module torchao, which is not installed; "
            "install s2v-tasks[fp8] (images: --build-arg EXTRAS=fp8), or set S2V_WEIGHTS_DTYPE=auto"
        )
