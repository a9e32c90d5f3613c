"""Comparison with golden tensors: `runner.run(folder)` executes and compares every golden file of a folder."""
