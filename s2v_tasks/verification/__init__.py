"""Verification of the engine: parity with recorded tensors, benchmarks, and a tiny checkpoint."""
