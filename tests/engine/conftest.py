"""The tiny snapshot, written once for all engine tests."""

from pathlib import Path

import pytest

from s2v_tasks.engine.tiny_snapshot import write_tiny_snapshot


@pytest.fixture(scope="session")
def tiny_snapshot_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny snapshot that tests must not change."""
    path = tmp_path_factory.mktemp("snapshots") / "tiny"
    write_tiny_snapshot(path, seed=0)
    return path
