"""Versions that everything here is installed with."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def constraint(name: str) -> str:
    """The exact version of a package that everything here is installed with."""
    pins = (ROOT / "config" / "constraints-py311.txt").read_text(encoding="utf-8")
    found = re.search(rf"^{re.escape(name)}==(\S+)$", pins, re.MULTILINE)
    assert found, name
    return found[1]
