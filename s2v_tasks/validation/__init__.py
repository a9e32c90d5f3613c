"""Checks of measured facts, of a finished video against the expectations of its plan."""
