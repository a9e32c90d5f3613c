"""Presets: named sets of defaults, read from config/presets.yaml."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from s2v_tasks.errors import ConfigurationError, PermanentError
from s2v_tasks.schemas.config_files import read_yaml
from s2v_tasks.schemas.request_fields import AdapterChoice, Solver, StepCache, parse_size, plain_number
from s2v_tasks.settings import Settings, config_dir


class Preset(BaseModel):
    """Defaults for the fields that a request leaves out."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    label: str
    num_clip: int | None = Field(None, ge=1)
    infer_frames: int = Field(ge=16, le=120, multiple_of=4)
    sample_steps: int = Field(ge=1, le=100)
    sample_guide_scale: float = Field(ge=1.0, le=20.0)
    sample_shift: float = Field(ge=1.0, le=20.0)
    sample_solver: Solver = "unipc"
    guide_steps: tuple[int, int] | None = None
    adapters: tuple[AdapterChoice, ...] = ()
    step_cache: StepCache | None = None
    size: str
    preview: bool = Field(False, description="Mark videos of this preset as previews, to be rendered again.")

    @field_validator("*", mode="before")
    @classmethod
    def _numbers_are_plain(cls, value: Any, info: ValidationInfo) -> Any:
        return plain_number(value, cls.model_fields[str(info.field_name)])

    @field_validator("size")
    @classmethod
    def _size_is_legal(cls, value: str) -> str:
        parse_size(value)
        return value


def load_presets(config_dir: Path) -> dict[str, Preset]:
    """Return all presets of `config_dir`/presets.yaml in file order; ConfigurationError for a bad file."""
    path = config_dir / "presets.yaml"
    presets: dict[str, Preset] = {}
    try:
        for name, fields in read_yaml(path).items():
            presets[name] = Preset.model_validate(fields)
    except ValidationError as error:
        problems = "; ".join(map(_problem, error.errors()))
        raise ConfigurationError(f"{path} is not a valid preset file: preset {name}: {problems}.") from error
    except (OSError, yaml.YAMLError, AttributeError) as error:
        raise ConfigurationError(f"{path} is not a valid preset file: {error}") from error
    return presets


def _problem(error: Any) -> str:
    field = ".".join(map(str, error["loc"])) or "its fields"
    if error["type"] == "missing":
        return f"{field} is missing"
    return f"{field} {error['input']!r}: {error['msg'].removeprefix('Value error, ')}"


def load_demo_request(config_dir: Path) -> dict[str, Any]:
    """Return the request of `config_dir`/demo.yaml: sample inputs at a size that a CPU renders in seconds."""
    request: dict[str, Any] = read_yaml(config_dir / "demo.yaml")
    return request


def prefilled_request(settings: Settings) -> dict[str, Any]:
    """Return the fields with which forms are filled: on a CPU those of the demo, otherwise none.

    Only the embedded stack has the sample inputs. On other servers the fields that belong to them stay empty.
    """
    if settings.gpu != "cpu":
        return {}
    request = load_demo_request(config_dir(settings))
    if request["image_uri"].startswith(f"{settings.data_uri.rstrip('/')}/"):
        return request
    return {name: value for name, value in request.items() if name not in {"image_uri", "audio_uri", "prompt"}}


def find_preset(presets: Mapping[str, Preset], name: str) -> Preset:
    """Return the preset `name`; PermanentError with the known names if there is none."""
    if name not in presets:
        raise PermanentError(f"preset {name!r} is unknown: expected one of {', '.join(presets)}.")
    return presets[name]
