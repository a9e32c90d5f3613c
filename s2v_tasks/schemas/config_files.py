"""Read the YAML files of the configuration, which people edit with any editor."""

from pathlib import Path
from typing import Any

import yaml


def read_yaml(path: Path) -> Any:
    """Return the content of a file in UTF-8 or UTF-16; YAMLError for another encoding or no YAML."""
    try:
        return yaml.safe_load(path.read_bytes())
    except yaml.reader.ReaderError as error:
        raise yaml.YAMLError(f"{error}; save it as UTF-8") from error
