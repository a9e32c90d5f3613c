"""Proof and measurement of the engine: parity with recorded tensors, benchmarks, and the tiny checkpoint they use."""
