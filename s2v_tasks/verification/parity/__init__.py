"""Proof against golden tensors: `runner.run(folder)` executes every golden file of a folder and compares."""
