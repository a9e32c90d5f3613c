"""What happens around the work of a step."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from s2v_tasks.settings import Settings, load_settings
from s2v_tasks.steps.context import StepContext, open_context
from s2v_tasks.storage.artifacts import Built, OutputFile


@pytest.fixture
def context(s3_settings: Settings, postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[StepContext]:
    """A job that has failed."""
    monkeypatch.setenv("S2V_DATABASE_URL", postgres_url)
    load_settings.cache_clear()
    with open_context("my-job", load_settings()) as context:
        context.ledger.job_queued("my-job", {})
        context.ledger.job_started("my-job")
        context.ledger.job_failed("my-job", "The first chain broke.")
        yield context


def make(context: StepContext, clip_index: int | None = None) -> None:
    """A piece of work that was not done yet."""
    key = context.layout.silent if clip_index is None else context.layout.clip(clip_index)

    def build(folder: Path) -> Built:
        (folder / "clip.mp4").write_bytes(b"frames")
        return Built({"clip": OutputFile(folder / "clip.mp4", key, "video/mp4")})

    context.produce(
        step="stitch" if clip_index is None else "render_clip",
        clip_index=clip_index,
        manifest_key=f"{key}.manifest.json",
        fingerprint="f",
        inputs={},
        build=build,
    )


def status(context: StepContext) -> str:
    job = context.ledger.job("my-job")
    assert job is not None
    return job.status


def test_a_clip_of_another_chain_does_not_start_a_failed_job_again(context: StepContext) -> None:
    """It is made and kept, but the job stays failed until it was closed; any other step starts it at once."""
    make(context, clip_index=3)
    assert status(context) == "failed"
    context.ledger.event("my-job", "step_finished", step="close_job")
    make(context, clip_index=4)
    assert status(context) == "running"
    context.ledger.job_failed("my-job", "The second chain broke.")
    make(context)
    assert status(context) == "running"
