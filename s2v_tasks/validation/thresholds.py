"""Limits of the checks, read from `config/validation.yaml`."""

from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from s2v_tasks.errors import ConfigurationError


class Thresholds(BaseModel):
    """Limits of the checks of a video. Luma is 0-255, levels are dB of full scale."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_start_offset_seconds: float = Field(ge=0)
    min_mean_luma: float = Field(ge=0, le=255)
    min_frame_luma: float = Field(ge=0, le=255)
    min_frame_luma_std: float = Field(ge=0, le=128)
    max_still_seconds: float = Field(gt=0)
    max_still_share: float = Field(gt=0, le=1)
    silent_below_dbfs: float = Field(ge=-120, le=0)
    max_level_loss_db: float = Field(ge=0)


def load_thresholds(path: Path) -> Thresholds:
    """Return the thresholds; ConfigurationError names a missing file, a missing or unknown key, or a bad value."""
    try:
        return Thresholds.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise ConfigurationError(f"{path} is missing: restore it, or set S2V_CONFIG_DIR to a folder with it.") from None
    except (ValidationError, yaml.YAMLError) as error:
        raise ConfigurationError(f"{path} is not a set of validation thresholds: {error}") from error
