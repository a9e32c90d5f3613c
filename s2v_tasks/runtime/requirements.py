"""Checks of the installation before a job fetches or renders anything.

They report a missing snapshot or output bucket before hours of GPU time are spent.
"""

import os
import uuid
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec

from s2v_tasks.engine.loading import Snapshot
from s2v_tasks.engine.loading.folders import advice_for
from s2v_tasks.errors import ConfigurationError, of_local_file
from s2v_tasks.media.encode import encoder_build
from s2v_tasks.media.ffmpeg import tool_path
from s2v_tasks.schemas.catalogue import load_catalogue
from s2v_tasks.schemas.model_card import ModelCard, load_gpu_card, load_model_card
from s2v_tasks.scratch import scratch_folder
from s2v_tasks.settings import Settings, config_dir
from s2v_tasks.storage.layout import drop_folder_uri
from s2v_tasks.storage.s3 import ObjectStore
from s2v_tasks.webhooks.delivery import signed_headers
from s2v_tasks.webhooks.target import RefusedTargetError

_DOWNLOAD = "download Wan-AI/Wan2.2-S2V-14B there with `hf download`, or write a tiny one with `s2v snapshot init-tiny`"


def check_requirements(settings: Settings, store: ObjectStore) -> None:
    """Raise ConfigurationError with a sentence for each missing requirement; TransientError when S3 does not answer.

    The snapshot is checked only for S2V_EXECUTION=local: pods have it on their own volume.
    """
    _raise_all(_requirements(settings, store))


def check_installation(settings: Settings, store: ObjectStore, database_url: str) -> None:
    """Check also what is too slow for each job, or what a job reports itself.

    These are the rights in the buckets, the schema of the database, the scratch folder, the secret of webhooks and the
    GPUs. It writes a small object into each folder of the store and deletes it. It loads torch.
    """
    from s2v_tasks.metadata import migrate

    places = dict.fromkeys((settings.data_uri, settings.output_uri, drop_folder_uri(settings)))
    checks = [*_requirements(settings, store), lambda: migrate.check(database_url)]
    checks += [partial(_check_rights, store, uri) for uri in places]
    checks += [partial(_check_scratch_folder, settings), partial(_check_webhook_secret, settings)]
    checks.append(lambda: next(store.unfinished_uploads("jobs/"), None))  # housekeeping lists them
    if settings.execution == "local":
        checks.append(lambda: _check_gpus(settings))
        checks.append(lambda: _check_transformer(settings))
    _raise_all(checks)


def _requirements(settings: Settings, store: ObjectStore) -> list[Callable[[], object]]:
    folder = config_dir(settings)
    checks: list[Callable[[], object]] = [
        lambda: load_catalogue(folder),
        lambda: load_model_card(folder, settings.model),
        lambda: load_gpu_card(folder, settings.gpu),
        encoder_build,
        lambda: tool_path("ffprobe"),
        lambda: _check_bucket(store, settings.data_uri),
        lambda: _check_bucket(store, settings.output_uri),
    ]
    if settings.execution == "local":
        checks.append(lambda: open_snapshot(settings, settings.model))
    return checks


def open_snapshot(settings: Settings, model: str) -> Snapshot:
    """Return the snapshot; ConfigurationError unless it is complete, readable and of `model`."""
    path = settings.snapshot_path
    card = load_model_card(config_dir(settings), model)
    try:
        # A link that leads nowhere is named by `Snapshot.open`.
        if path is None or not ("config" in card.files or os.path.lexists(path / "config.json")):
            advice = None if path is None else advice_for(path)
            raise ConfigurationError(
                f"S2V_SNAPSHOT_PATH is {path or 'not set'}: expected the folder with the model weights in the official "
                f"layout; {advice or _DOWNLOAD}."
            )
        snapshot = Snapshot.open(path, {name: path / file for name, file in card.files.items()})
        _check_model(snapshot, model, card, settings)
        for file in snapshot.weight_files():
            file.open("rb").close()
    except PermissionError as error:
        raise ConfigurationError(
            f"S2V_SNAPSHOT_PATH is {path}, but {error.filename} is not readable: expected files that this account "
            f"(uid {os.geteuid()}) may read; change their owner or their rights."
        ) from error
    return snapshot


def _check_model(snapshot: Snapshot, model: str, card: ModelCard, settings: Settings) -> None:
    """Raise ConfigurationError unless the weights are those of the model for which the job was planned."""
    try:
        snapshot.check_model(model, card.model_dump())
    except ConfigurationError as error:
        if model == settings.model:
            raise
        raise ConfigurationError(
            f"The job was planned for the model {model}, and S2V_MODEL is {settings.model} now. Set it back, or start "
            f"the job again: it is then planned for {settings.model}, and all its clips are rendered. Found: {error}"
        ) from error


def _raise_all(checks: list[Callable[[], object]]) -> None:
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
    store.has_any(f"{uri.rstrip('/')}/")


def _check_rights(store: ObjectStore, uri: str) -> None:
    _check_bucket(store, uri)
    address = f"{uri.rstrip('/')}/s2v-check-{uuid.uuid4().hex}"
    store.put_bytes(address, b"", "text/plain")
    store.get_bytes(address)
    store.delete(address)


def _check_scratch_folder(settings: Settings) -> None:
    try:
        with scratch_folder(settings.work_dir, "check"):
            pass
    except OSError as error:
        raise of_local_file(error) or error from None


def _check_webhook_secret(settings: Settings) -> None:
    """Raise ConfigurationError for a secret that cannot sign: messages would be refused, and not sent again."""
    try:
        if settings.webhook_secret:
            signed_headers(settings.webhook_secret.get_secret_value(), "0", "0", b"")
    except RefusedTargetError as error:
        raise ConfigurationError(str(error)) from None


def _check_transformer(settings: Settings) -> None:
    """Raise ConfigurationError unless the weights of the transformer fit its config.json; reads their headers."""
    if find_spec("torch") is not None:  # else `_check_gpus` says so
        open_snapshot(settings, settings.model).check_transformer()


def _check_gpus(settings: Settings) -> None:
    if find_spec("torch") is None:
        raise ConfigurationError(
            "torch is not installed, but S2V_EXECUTION is local: expected the extra `engine` in the environment of "
            "Airflow's workers, or S2V_EXECUTION=kubernetes."
        )
    from s2v_tasks.engine.worker import check_gpus

    check_gpus(settings.device, settings.nproc_per_node)
