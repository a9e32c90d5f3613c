"""Checks of measured facts, of a finished video against the expectations of its plan."""

from s2v_tasks.validation.checks import validate
from s2v_tasks.validation.thresholds import Thresholds, load_thresholds

__all__ = ["Thresholds", "load_thresholds", "validate"]
