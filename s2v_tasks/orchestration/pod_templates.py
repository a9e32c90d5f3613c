"""Pod templates of the heavy steps, with the patches of an installation.

The templates in `config/pods` are part of the Airflow image. An installation changes them without a new image: the
files in the folder `S2V_POD_PATCH_DIR`, usually a mounted ConfigMap, are merged into them, and `S2V_ENGINE_IMAGE` names
the image of the pods. Each task reads them again.

A patch is merged like a strategic merge patch of Kubernetes: maps are merged, null removes a field, and the lists of
`_MERGE_KEYS` are merged by the key of their items. Any other list replaces the list of the template.
"""

from pathlib import Path
from typing import Any, get_args

import yaml
from kubernetes.client import ApiClient, Configuration
from pydantic import SecretStr

from s2v_tasks.errors import ConfigurationError
from s2v_tasks.schemas.config_files import read_yaml
from s2v_tasks.schemas.steps import HEAVY_STEPS, Step
from s2v_tasks.settings import PREFIX, Settings, config_dir, load_settings

BASE_CONTAINER = "base"
EVERY_POD = "every_pod.yaml"
_MERGE_KEYS = {
    "containers": "name",
    "env": "name",
    "imagePullSecrets": "name",
    "initContainers": "name",
    "volumeMounts": "mountPath",
    "volumes": "name",
}
_SECRET_VARIABLES = {
    PREFIX + name.upper()
    for name, field in Settings.model_fields.items()
    if SecretStr in (field.annotation, *get_args(field.annotation))
}


def load_pod_template(step: Step) -> dict[str, Any]:
    """Return the pod of a step with all patches of this installation; ConfigurationError names a wrong file."""
    settings = load_settings()
    path = template_path(step)
    pod = _read(path)
    _check(pod, path)
    for patch_path in _patch_paths(settings, step):
        patch = _read(patch_path)
        pod = merge(pod, patch)
        _check(pod, patch_path)
    if settings.engine_image:
        _base_container(pod, path)["image"] = settings.engine_image
    return pod


def template_path(step: Step) -> Path:
    """Return the path of the pod template of a step; ConfigurationError if there is none."""
    path = config_dir(load_settings()) / "pods" / f"{step.name}.yaml"
    if not path.is_file():
        raise ConfigurationError(f"{path} is missing: expected the pod template of {step.command}. See S2V_CONFIG_DIR.")
    return path


def namespace_of(step: Step) -> str:
    """Return the namespace of the pods of a step."""
    return str(load_pod_template(step)["metadata"]["namespace"])


def merge(target: Any, patch: Any, field: str = "") -> Any:
    """Return `target` with `patch` merged into it; `field` is the name of both."""
    if isinstance(target, dict) and isinstance(patch, dict):
        merged = dict(target)
        for name, value in patch.items():
            if value is None:
                merged.pop(name, None)
            else:
                merged[name] = merge(target.get(name), value, name)
        return merged
    key = _MERGE_KEYS.get(field)
    if key and isinstance(target, list) and isinstance(patch, list):
        return _merge_items(target, patch, key)
    return _without_nulls(patch)


def _merge_items(target: list[Any], patch: list[Any], key: str) -> list[Any]:
    """Return the items of `target`, changed by the items of `patch` with the same value of `key`, then its new ones."""
    merged = list(target)
    places = {item.get(key): index for index, item in enumerate(target) if isinstance(item, dict)}
    for item in patch:
        place = places.get(item.get(key)) if isinstance(item, dict) else None
        if place is None:
            merged.append(_without_nulls(item))
        else:
            merged[place] = merge(merged[place], item)
    return merged


def _without_nulls(value: Any) -> Any:
    """Return a copy of a patch value without nulls, which remove fields."""
    return {name: _without_nulls(v) for name, v in value.items() if v is not None} if isinstance(value, dict) else value


def _patch_paths(settings: Settings, step: Step) -> list[Path]:
    """Return the patches for a step, that of all steps first; ConfigurationError for a file that belongs to no step."""
    folder = settings.pod_patch_dir
    if folder is None:
        return []
    if not folder.is_dir():
        raise ConfigurationError(
            f"S2V_POD_PATCH_DIR={folder}: no such folder. Expected the folder of the mounted ConfigMap. Mount it, or "
            "remove the setting."
        )
    known = {EVERY_POD, *(f"{heavy.name}.yaml" for heavy in HEAVY_STEPS)}
    # Kubernetes uses links that start with two dots to replace the files of a ConfigMap.
    for path in sorted(folder.iterdir()):
        if path.name not in known and not path.name.startswith(".."):
            raise ConfigurationError(f"{path}: expected one of {', '.join(sorted(known))}. Rename or remove the file.")
    return [path for name in (EVERY_POD, f"{step.name}.yaml") if (path := folder / name).is_file()]


def _read(path: Path) -> dict[str, Any]:
    """Return the part of a pod in a file; ConfigurationError for other content."""
    try:
        content = read_yaml(path)
    except yaml.YAMLError as error:
        raise ConfigurationError(
            f"{path} is not valid YAML: {' '.join(str(error).split())}. Correct the file."
        ) from error
    if content is None:  # comments only
        return {}
    if not isinstance(content, dict):
        raise ConfigurationError(
            f"{path} holds {str(content)[:60]!r}; expected fields of a Pod, for example spec: {{nodeSelector: ...}}."
        )
    return content


def _check(pod: dict[str, Any], path: Path) -> None:
    """Raise ConfigurationError unless `pod` has only Kubernetes fields, a namespace, an image and no secret value.

    `path` is the file that was merged last, for the message.
    """
    client = ApiClient(configuration=Configuration())
    try:
        sent = client.sanitize_for_serialization(client._ApiClient__deserialize(pod, "V1Pod"))
    except (ValueError, TypeError, AttributeError) as error:
        raise ConfigurationError(
            f"{path} is not a valid Pod: {error}. Expected the fields of a Kubernetes Pod."
        ) from error
    _compare(pod, sent, "", path)
    namespace = (pod.get("metadata") or {}).get("namespace")
    if not isinstance(namespace, str):
        raise ConfigurationError(f"{path} has namespace {namespace!r}: expected metadata.namespace, where pods run.")
    for variable in _base_container(pod, path).get("env") or []:
        if variable["name"] in _SECRET_VARIABLES and "value" in variable:
            raise ConfigurationError(
                f"{path} has the value of {variable['name']}; expected valueFrom.secretKeyRef, because everyone who "
                "may list pods can read it. Put the value into the Secret s2v-credentials."
            )


def _base_container(pod: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return the container that runs the step; ConfigurationError if there is none with an image."""
    containers: list[dict[str, Any]] = (pod.get("spec") or {}).get("containers") or []
    names = [container["name"] for container in containers]
    base = containers[names.index(BASE_CONTAINER)] if BASE_CONTAINER in names else {}
    if not base.get("image"):
        raise ConfigurationError(
            f"{path} makes a pod with the containers {names}; expected one called {BASE_CONTAINER}, with an image."
        )
    return base


def _compare(given: Any, sent: Any, field: str, path: Path) -> None:
    """Raise ConfigurationError for the first field that would not reach Kubernetes unchanged."""
    if isinstance(given, dict):
        for name, value in given.items():
            inner = f"{field}.{name}" if field else str(name)
            if not isinstance(sent, dict) or name not in sent:
                if value is None:
                    continue
                raise ConfigurationError(f"{path} has {inner}; expected a field of a Kubernetes Pod. Check its name.")
            _compare(value, sent[name], inner, path)
    elif isinstance(given, list):
        for index, value in enumerate(given):
            if value is None:
                raise ConfigurationError(f"{path} has an empty item {field}[{index}]; expected a value. Remove it.")
            _compare(value, sent[index], f"{field}[{index}]", path)
    elif isinstance(given, bool) != isinstance(sent, bool):
        raise ConfigurationError(f"{path} has {field}: {given!r}; expected text. Put the value in quotes.")
