"""Measurements of the engine, each a table of ratios taken in one run."""
