"""Benchmarks of the engine; each compares its variants in one run."""
