"""Limits of the quality measures, from `config/quality.yaml`."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from s2v_tasks.schemas.config_files import read_model


class _Limits(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Below(_Limits):
    """Lower limits of a measure; None switches a limit off."""

    warn_below: float | None
    fail_below: float | None


class Above(_Limits):
    """Upper limits of a measure; None switches a limit off."""

    warn_above: float | None
    fail_above: float | None


class QualityLimits(_Limits):
    """All limits of `config/quality.yaml`, which explains each."""

    face_share: Below
    face_gap_frames: Above
    shape_difference: Above
    identity_difference: Above = Above(warn_above=0.5, fail_above=None)
    min_speech_share: float = Field(ge=0, le=1)
    min_lip_sync_frames: int = Field(48, ge=32)
    still_mouth: Below
    landmark_noise: float = Field(0.03, ge=0)
    lip_sync_margin: Below
    lip_sync_lag_ms: Above
    silent_mouth_ratio: Above
    seam_jump: Above
    seam_colour_jump: Above
    seam_colour: Above
    skin_difference: Above
    background_difference: Above
    sharpness_ratio: Below
    contrast_ratio: Below
    colour_drift: Above
    sharpness_drift: Below


def load_quality_limits(config_dir: Path) -> QualityLimits:
    """Return the limits of `config_dir`/quality.yaml; ConfigurationError says what is wrong with the file."""
    return read_model(QualityLimits, config_dir / "quality.yaml", "quality limits")
