"""Checks of measured facts, of a finished video against the expectations of its plan."""

from s2v_tasks.validation.checks import Thresholds, load_thresholds, validate

__all__ = ["Thresholds", "load_thresholds", "validate"]
