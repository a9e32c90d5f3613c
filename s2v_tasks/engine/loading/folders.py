"""Recognise folders that people take for the folder of a snapshot, and say what to do with them."""

import json
from collections.abc import Iterator
from pathlib import Path

# From a folder to that of a snapshot in it: one folder too high, a repository in a cache of the Hub, the cache itself.
_BELOW = ("*/config.json", "snapshots/*/config.json", "models--*/snapshots/*/config.json")


def advice_for(path: Path) -> str | None:
    """Return what to do with a path that is not the folder of a snapshot, as a sentence; None without advice."""
    if nearby := _nearby(path):
        return f"the weights are in {nearby}: use that folder"
    if path.is_file():
        return "it is a file: use the folder that contains config.json and the weights"
    if (path / "model_index.json").is_file():
        return "it is a repository in the layout of diffusers: download the original one, Wan-AI/Wan2.2-S2V-14B"
    if any((path / name).is_dir() for name in ("high_noise_model", "low_noise_model")):
        return "it is another model, Wan2.2 with two transformers: download Wan-AI/Wan2.2-S2V-14B"
    return None


def _nearby(path: Path) -> Path | None:
    """Return the folder of a snapshot below or above `path`."""
    return next((config.parent for config in _configs(path) if _is_of_snapshot(config)), None)


def _configs(path: Path) -> Iterator[Path]:
    for pattern in _BELOW:
        yield from sorted(path.glob(pattern))
    yield from (above / "config.json" for above in (path.parent, path.parent.parent))


def _is_of_snapshot(config: Path) -> bool:
    try:
        values = json.loads(config.read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(values, dict) and values.get("model_type") == "s2v"
