"""The exact versions of packages that tests and images install."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def constraint(name: str) -> str:
    """Return the exact version of a package in the constraints file."""
    pins = (ROOT / "config" / "constraints-py311.txt").read_text(encoding="utf-8")
    found = re.search(rf"^{re.escape(name)}==(\S+)$", pins, re.MULTILINE)
    assert found, name
    return found[1]
