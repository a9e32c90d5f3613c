"""How an installation has its clips computed, beyond what their plan says."""

from dataclasses import dataclass
from typing import Literal

NoiseDevice = Literal["run", "cpu"]
WeightsDtype = Literal["auto", "fp8", "fp8-dynamic"]


@dataclass(frozen=True)
class EngineOptions:
    """Each of them changes the bytes of a clip, so all of them belong into its fingerprint."""

    noise_device: NoiseDevice = "run"  # where noise is drawn; "cpu": the same numbers on every device
    attention: str = "auto"  # or one of `models.attention_kernels.ATTENTION_KERNELS`
    compiled: bool = False  # whether torch.compile makes one graph of a block
    weights_dtype: WeightsDtype = "auto"  # of the blocks; "auto": that of the run
    step_cache: float = 0.0  # relative change of the first block below which the other blocks are not run; 0: never
