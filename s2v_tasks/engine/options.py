"""Options of an installation for the computation of clips, in addition to the plan."""

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

NoiseDevice = Literal["run", "cpu"]
VaePrecision = Literal["float32", "bfloat16"]
Offload = Literal["none", "blocks"]
WeightsDtype = Literal["auto", "fp8", "fp8-dynamic"]

# Newer options: fingerprints omit them at their default, so that earlier clips stay valid.
_LEFT_OUT_AT_DEFAULT = ("vae_precision",)
# Options that change no byte.
_NEVER_IN_FINGERPRINT = ("offload",)
_NAMES_OF_SETTINGS = {"compiled": "compile"}


@dataclass(frozen=True)
class EngineOptions:
    """Options of the engine. Options that change the bytes of a clip are part of its fingerprint: all except `offload`.

    A new option is a field here and a setting of the same name.
    """

    noise_device: NoiseDevice = "run"  # device that draws the noise; "cpu": equal noise on every device
    attention: str = "auto"  # or one of `models.attention.ATTENTION_KERNELS`
    compiled: bool = False  # compile each block to one graph with torch.compile
    weights_dtype: WeightsDtype = "auto"  # dtype of the blocks; "auto": the dtype of the run
    step_cache: float = 0.0  # first-block cache: the relative change below which the other blocks are skipped; 0: never
    vae_precision: VaePrecision = "float32"  # "bfloat16": in the memory format channels last
    offload: Offload = "none"  # "blocks": they stay in host memory, see `acceleration.offload`

    @classmethod
    def of(cls, settings: object) -> "EngineOptions":
        """Read the options from the attributes of `settings` of the same names."""
        names = {field.name: _NAMES_OF_SETTINGS.get(field.name, field.name) for field in fields(cls)}
        return cls(**{option: getattr(settings, name) for option, name in names.items()})

    def for_fingerprint(self) -> dict[str, Any]:
        """Return the options that the fingerprint of a clip states."""
        default = asdict(EngineOptions())
        return {
            name: value
            for name, value in asdict(self).items()
            if name not in _NEVER_IN_FINGERPRINT and (name not in _LEFT_OUT_AT_DEFAULT or value != default[name])
        }
