"""Verification of the engine: parity with recorded tensors, benchmarks, and a tiny checkpoint."""

import s2v_tasks.engine  # noqa: F401  (sets the environment that torch reads, before a module here imports torch)
