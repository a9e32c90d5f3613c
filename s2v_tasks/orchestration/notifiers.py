"""Notifiers that Airflow calls if a run fails, from config/notifiers.yaml. Other systems use webhooks instead."""

import importlib
from pathlib import Path
from typing import Any

import yaml
from airflow.sdk import BaseNotifier

from s2v_tasks.errors import ConfigurationError
from s2v_tasks.schemas.config_files import read_yaml
from s2v_tasks.settings import config_dir, load_settings

FILE = "notifiers.yaml"


def failure_notifiers() -> list[BaseNotifier] | None:
    """Return the `on_failure_callback` of a DAG; None without notifiers."""
    path = config_dir(load_settings()) / FILE
    if not path.is_file():
        return None
    try:
        entries = (read_yaml(path) or {}).get("dag_failure") or []
    except (yaml.YAMLError, AttributeError) as error:
        raise ConfigurationError(f"{path} is not a valid file of notifiers: {error}") from error
    return [_notifier(entry, path) for entry in entries] or None


def _notifier(entry: Any, path: Path) -> BaseNotifier:
    """Return the notifier of one entry; ConfigurationError names the problem."""
    if not isinstance(entry, dict) or "notifier" not in entry or set(entry) - {"notifier", "arguments"}:
        raise ConfigurationError(f"{path}: {entry!r}: expected an entry with `notifier` and `arguments`.")
    module, _, name = str(entry["notifier"]).rpartition(".")
    try:
        notifier = getattr(importlib.import_module(module), name)
        if not (isinstance(notifier, type) and issubclass(notifier, BaseNotifier)):
            raise TypeError("it is not a notifier")
        return notifier(**entry.get("arguments", {}))
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ConfigurationError(
            f"{path}: {entry['notifier']!r}: {error}. Expected the import path of a notifier of an installed "
            "provider, and its arguments."
        ) from error
