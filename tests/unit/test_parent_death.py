"""Commands that end with their parent."""

import signal
from pathlib import Path

import pytest

from s2v_tasks import parent_death


def test_without_setpriv_a_command_is_unchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without util-linux, or with an old one, runs the command itself."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(parent_death, "_can_run", parent_death._can_run.__wrapped__)
    assert parent_death.ending_with_parent(["sleep", "1"], signal.SIGKILL) == ["sleep", "1"]
    old = tmp_path / "setpriv"
    old.write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
    old.chmod(0o755)
    assert parent_death.ending_with_parent(["sleep", "1"], signal.SIGKILL) == ["sleep", "1"]
