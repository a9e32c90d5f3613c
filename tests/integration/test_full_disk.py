"""Check that a step on a full scratch disk ends with exit code 75 and continues once there is space."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from s2v_tasks.settings import load_settings
from s2v_tasks.storage.layout import JobLayout
from s2v_tasks.storage.s3 import ObjectStore

LAYOUT = JobLayout("step-by-step")
MADE = {
    "stage_inputs": LAYOUT.input_manifest,
    "encode_conditions": LAYOUT.conditions_manifest,
    "render_clip": LAYOUT.clip_manifest(1),
    "stitch": LAYOUT.silent_manifest,
    "mux_audio": LAYOUT.mux_manifest,
    "validate": LAYOUT.report_manifest,
}


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """An empty file system of 4 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4k", "none", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a file system")
    yield folder
    subprocess.run(("umount", str(folder)), check=True)  # noqa: S607


def test_no_step_takes_a_full_disk_for_a_bad_input(
    full_disk: Path,
    run: Callable[..., dict[str, Any]],
    render: Callable[..., list[bool]],
    assemble: Callable[[], None],
    store: ObjectStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A full disk is a transient error in Python, ffmpeg and libraries; no files remain for the next attempt."""
    render()
    assemble()
    said = {}
    for step, key in MADE.items():
        clip_index = 1 if step == "render_clip" else None
        store.delete(key)
        monkeypatch.setenv("S2V_WORK_DIR", str(full_disk))
        load_settings.cache_clear()
        with pytest.raises(Exception, match=r"\w") as caught:
            run(step, clip_index)
        said[step] = f"{type(caught.value).__name__}: {caught.value}"
        assert [path.name for path in full_disk.rglob("*") if path.is_file()] == []
        monkeypatch.delenv("S2V_WORK_DIR")
        load_settings.cache_clear()
        run(step, clip_index)
    assert {step: text[:32] for step, text in said.items()} == dict.fromkeys(MADE, "TransientError: The disk is full")
