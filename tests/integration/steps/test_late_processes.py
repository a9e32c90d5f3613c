"""A process that Airflow has lost goes on beside its replacement: it changes nothing that the replacement has done."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from s2v_tasks.errors import TransientError
from s2v_tasks.metadata.jobs import JobRepository
from s2v_tasks.runtime.context import StepContext, open_context, run_step
from s2v_tasks.schemas.steps import MUX_AUDIO, STITCH, VALIDATE
from s2v_tasks.settings import load_settings
from s2v_tasks.steps import mux_audio, publish, stitch, validate
from s2v_tasks.storage.layout import JobLayout
from s2v_tasks.storage.s3 import ObjectStore
from tests.integration.steps.assembly import moving_frames, render

Finish = Callable[[], None]


@pytest.fixture
def replacement(job: StepContext) -> Iterator[StepContext]:
    """Another process of the same job."""
    with open_context(job.job_id, load_settings()) as context:
        yield context


@pytest.fixture
def finish(replacement: StepContext) -> Finish:
    """A function that runs the job to its end, as the replacement and the steps after it do."""

    def finish() -> None:
        for step in (stitch, mux_audio, validate, publish):
            step.run(replacement)

    return finish


def once_before(patch: pytest.MonkeyPatch, owner: Any, name: str, other: Finish, key: str = "") -> None:
    """Let something else happen before the next call of a function, as if the call waited for a service.

    `key`: before the next call with this argument.
    """
    function = getattr(owner, name)

    def late(*arguments: Any, **named: Any) -> Any:
        if not key or key in arguments:
            patch.setattr(owner, name, function)
            other()
        return function(*arguments, **named)

    patch.setattr(owner, name, late)


@pytest.mark.parametrize(
    ("owner", "waits_in", "key"),
    [(JobRepository, "start", "my-job"), (ObjectStore, "exists", JobLayout("my-job").result)],
)
def test_a_late_step_does_not_withdraw_the_result_of_its_replacement(
    job: StepContext, finish: Finish, monkeypatch: pytest.MonkeyPatch, owner: type, waits_in: str, key: str
) -> None:
    """A step that waits for PostgreSQL or S3 until the job has succeeded leaves status and result unchanged."""
    once_before(monkeypatch, owner, waits_in, finish, key)
    with pytest.raises(TransientError, match="has ended since this process began"):
        run_step(stitch.run, step=STITCH, job_id=job.job_id)
    found = job.metadata.jobs.get(job.job_id)
    assert found is not None
    assert found.status == "succeeded"
    assert job.store.exists(job.layout.result)
    assert run_step(stitch.run, step=STITCH, job_id=job.job_id) == {"reused": True}


def test_a_step_of_a_finished_job_may_be_run_again(job: StepContext, finish: Finish) -> None:
    """A step that begins after the end of the job restarts it, if it has something to do."""
    finish()
    with open_context(job.job_id, load_settings()) as later:
        render(later, 255 - moving_frames())
    job.metadata.jobs.succeed(job.job_id, "s3://video", "ab")
    assert run_step(stitch.run, step=STITCH, job_id=job.job_id) == {"reused": False}
    found = job.metadata.jobs.get(job.job_id)
    assert found is not None
    assert (found.status, job.store.exists(job.layout.result)) == ("running", False)


def test_a_video_of_an_earlier_start_is_neither_muxed_nor_validated(
    job: StepContext, replacement: StepContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a late process of an earlier start stores its video last, the next step names the step to run again."""

    def start_again() -> None:
        render(replacement, 255 - moving_frames())
        for step in (stitch, mux_audio):
            step.run(replacement)

    once_before(monkeypatch, stitch, "stitch", start_again)
    stitch.run(job)
    with pytest.raises(TransientError, match=r"made from other inputs.*run `s2v stitch` again"):
        mux_audio.run(replacement)
    with pytest.raises(TransientError, match="run `s2v mux-audio` again"):
        validate.run(replacement)
    for step in (stitch, mux_audio, validate):
        step.run(replacement)
    clip = replacement.clip_manifest(0).outputs["clip"]
    assert replacement.manifest(job.layout.silent_manifest, STITCH).inputs["clip_0000"].sha256 == clip.sha256
    silent = replacement.manifest(job.layout.silent_manifest, STITCH).outputs["silent"]
    assert replacement.manifest(job.layout.mux_manifest, MUX_AUDIO).inputs["silent"].sha256 == silent.sha256
    assert replacement.manifest(job.layout.report_manifest, VALIDATE)
