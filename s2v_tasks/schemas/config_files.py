"""Read the YAML files of the configuration, which people edit with any editor."""

from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from s2v_tasks.errors import ConfigurationError

Model = TypeVar("Model", bound=BaseModel)


def read_yaml(path: Path) -> Any:
    """Return the content of a file in UTF-8 or UTF-16; YAMLError for another encoding or no YAML."""
    try:
        return yaml.safe_load(path.read_bytes())
    except yaml.reader.ReaderError as error:
        raise yaml.YAMLError(f"{error}; save it as UTF-8") from error


def read_model(kind: type[Model], path: Path, described: str) -> Model:
    """Return the file as `kind`; ConfigurationError names a missing file, a missing or unknown key, or a bad value."""
    try:
        return kind.model_validate(read_yaml(path))
    except FileNotFoundError:
        raise ConfigurationError(f"{path} is missing: restore it, or set S2V_CONFIG_DIR to a folder with it.") from None
    except (ValidationError, yaml.YAMLError) as error:
        raise ConfigurationError(f"{path} is not a set of {described}: {error}") from error
