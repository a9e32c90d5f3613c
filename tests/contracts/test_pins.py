"""Check the exact versions in `config/constraints-py311.txt`."""

import re
from importlib.metadata import distributions

from packaging.specifiers import SpecifierSet

from tests.contracts.pins import ROOT

OLDEST_PYTHON = "3.11.2"  # of Debian 12, which README.md names


def test_every_pinned_package_runs_on_the_python_of_debian() -> None:
    """No pinned package needs a newer Python 3.11: pip would search for other versions for many minutes."""
    pins = (ROOT / "config" / "constraints-py311.txt").read_text(encoding="utf-8")
    pinned = dict(line.split("==") for line in pins.splitlines() if "==" in line)
    versions = {_normal(name): version.strip() for name, version in pinned.items()}
    # `get`, because a finder that another package installs raises KeyError for what is missing.
    needs = {
        distribution.name: distribution.metadata.get("Requires-Python")
        for distribution in distributions()
        if versions.get(_normal(distribution.name)) == distribution.version.partition("+")[0]
    }
    assert len(needs) > 200
    too_new = {name: python for name, python in needs.items() if python and OLDEST_PYTHON not in SpecifierSet(python)}
    assert not too_new


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
