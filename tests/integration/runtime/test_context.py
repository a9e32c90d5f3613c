"""Check events, failures and results around the work of a step."""

from pathlib import Path
from typing import Any

import pytest

from s2v_tasks.runtime.context import StepContext, open_context, run_step
from s2v_tasks.schemas.manifest import ClipFacts, Facts
from s2v_tasks.schemas.steps import RENDER_CLIP, STITCH
from s2v_tasks.settings import load_settings
from s2v_tasks.storage.artifacts import Built, OutputFile, Work


@pytest.fixture
def context(context: StepContext) -> StepContext:
    """A job that has failed."""
    context.metadata.jobs.start("my-job")
    context.metadata.jobs.fail("my-job", "The first chain broke.")
    return context


def make(context: StepContext, clip_index: int | None = None) -> None:
    """Store an output that did not exist yet."""
    key = context.layout.silent if clip_index is None else context.layout.clip(clip_index)

    def build(folder: Path) -> Built:
        (folder / "clip.mp4").write_bytes(b"frames")
        facts = Facts() if clip_index is None else ClipFacts(start_frame=0, end_frame=48)
        return Built({"clip": OutputFile(folder / "clip.mp4", key, "video/mp4")}, facts)

    step = STITCH if clip_index is None else RENDER_CLIP
    context.produce(Work(step, "my-job", f"{key}.manifest.json", "f", {}, clip_index), build)


def status(context: StepContext) -> str:
    job = context.metadata.jobs.get("my-job")
    assert job is not None
    return job.status


def test_a_clip_of_another_chain_does_not_start_a_failed_job_again(context: StepContext) -> None:
    """The clip is stored, but the job stays failed until it is closed; another step that begins then starts it."""
    make(context, clip_index=3)
    assert status(context) == "failed"
    context.metadata.events.record("my-job", "step_finished", step="close_job")
    make(context, clip_index=4)
    assert status(context) == "running"
    context.metadata.jobs.fail("my-job", "The second chain broke.")
    with open_context("my-job", load_settings()) as later:
        make(later)
    assert status(context) == "running"


@pytest.mark.parametrize(
    ("error", "exit_code", "ends"),
    [
        (OSError(28, "No space left on device", "/scratch/clip.mp4"), 75, "running"),
        (PermissionError(13, "Permission denied", "/scratch"), 78, "failed"),
        (ValueError("a bug"), 1, "running"),
    ],
)
def test_errors_of_the_local_disk_keep_their_kind(
    context: StepContext, error: Exception, exit_code: int, ends: str
) -> None:
    """A full disk is retried; a wrong folder fails the job with its message; a bug keeps its class."""
    context.metadata.jobs.enqueue("my-job", {})
    context.metadata.jobs.start("my-job")

    def body(_context: StepContext) -> dict[str, Any]:
        raise error

    with pytest.raises(Exception, match=str(error.args[-1])) as caught:
        run_step(body, step=STITCH, job_id="my-job")
    assert getattr(caught.value, "exit_code", 1) == exit_code
    assert getattr(caught.value, "is_recorded", True)
    job = context.metadata.jobs.get("my-job")
    assert job is not None
    assert (job.status, job.events[-1 if ends == "running" else -2].detail["exit_code"]) == (ends, exit_code)


def test_scratch_is_made_when_it_is_needed(context: StepContext, tmp_path: Path) -> None:
    """A wrong S2V_WORK_DIR is found inside the step, where it can be recorded; scratch is removed after the step."""
    (tmp_path / "file").touch()
    settings = context.settings.model_copy(update={"work_dir": tmp_path / "file"})
    with open_context("my-job", settings) as wrong, pytest.raises(OSError, match="file"):
        wrong.work_dir  # noqa: B018
    settings = settings.model_copy(update={"work_dir": tmp_path / "new" / "folder"})
    with open_context("my-job", settings) as right:
        assert right.work_dir == right.work_dir
        assert right.work_dir.parent == tmp_path / "new" / "folder"
        assert right.work_dir.is_dir()
    assert list((tmp_path / "new" / "folder").iterdir()) == []
