"""Check the start of the embedded S3 server on a full disk."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from s2v_tasks.embedded import object_store
from s2v_tasks.embedded.object_store import S3Server
from s2v_tasks.errors import TransientError


def test_a_disk_without_room_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SeaweedFS refuses to write if at most 1 % is free, also while a large disk has gigabytes."""
    asked: list[Path] = []

    def disk_usage(place: Path) -> SimpleNamespace:
        asked.append(place)
        return SimpleNamespace(total=2_000_000_000_000, free=20_000_000_000)

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    with pytest.raises(TransientError, match=r"is full \(20\.00 of 2000\.0 GB are free at .* 1%\).*S2V_HOME"):
        S3Server(tmp_path / "home").start()
    assert asked == [tmp_path]
    assert list(tmp_path.iterdir()) == []


def test_a_disk_with_room_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A little more than 1 % is enough."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=100_000, free=1001))
    object_store._check_room(tmp_path)
