"""Does the finished video keep what the plan promised? Pure judgement over measured facts."""

from s2v_tasks.validation.checks import validate
from s2v_tasks.validation.thresholds import Thresholds, load_thresholds

__all__ = ["Thresholds", "load_thresholds", "validate"]
