"""What a job needs of its installation, checked before anything is fetched or rendered.

A snapshot or an output bucket that is not there would else be noticed hours later, or after the GPUs have been paid.
"""

from collections.abc import Callable
from itertools import islice
from pathlib import Path

from s2v_tasks.errors import ConfigurationError
from s2v_tasks.media.encode import encoder_build
from s2v_tasks.media.ffmpeg import tool_path
from s2v_tasks.schemas.model_card import load_gpu_card, load_model_card
from s2v_tasks.schemas.preset import load_presets
from s2v_tasks.settings import Settings, config_dir
from s2v_tasks.storage.s3 import ObjectStore


def check_requirements(settings: Settings, store: ObjectStore) -> None:
    """ConfigurationError with one sentence for each thing that is missing; TransientError when the store is away.

    The snapshot is looked for only where the steps render themselves: pods have it on a volume of their own.
    """
    folder = config_dir(settings)
    checks: list[Callable[[], object]] = [
        lambda: load_presets(folder),
        lambda: load_model_card(folder, settings.model),
        lambda: load_gpu_card(folder, settings.gpu),
        encoder_build,
        lambda: tool_path("ffprobe"),
        lambda: _check_bucket(store, settings.data_uri),
        lambda: _check_bucket(store, settings.output_uri),
    ]
    if settings.execution == "local":
        checks.append(lambda: _check_snapshot(settings.snapshot_path))
    problems = [problem for check in checks if (problem := _problem(check))]
    if problems:
        raise ConfigurationError(" ".join(dict.fromkeys(problems)))


def _problem(check: Callable[[], object]) -> str | None:
    try:
        check()
    except ConfigurationError as error:
        return str(error)
    return None


def _check_bucket(store: ObjectStore, uri: str) -> None:
    list(islice(store.listing(f"{uri.rstrip('/')}/"), 1))


def _check_snapshot(path: Path | None) -> None:
    if path is None or not (path / "config.json").is_file():
        raise ConfigurationError(
            f"S2V_SNAPSHOT_PATH is {path or 'not set'}: expected the folder with the model weights in the official "
            "layout; download Wan-AI/Wan2.2-S2V-14B there, or write a tiny one with `s2v snapshot init-tiny`."
        )
