"""A process that Airflow has lost goes on beside its replacement: it changes nothing that the replacement has done."""

from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

import pytest

from s2v_tasks.errors import PermanentError, TransientError, UnavailableError
from s2v_tasks.metadata.jobs import JobRepository
from s2v_tasks.metadata.tables import Job
from s2v_tasks.runtime import outages
from s2v_tasks.runtime.context import StepContext, open_context, run_step
from s2v_tasks.schemas.steps import MUX_AUDIO, PUBLISH, STAGE_INPUTS, STITCH, VALIDATE
from s2v_tasks.settings import load_settings
from s2v_tasks.steps import mux_audio, publish, stage_inputs, stitch, validate
from s2v_tasks.storage.layout import JobLayout, output_video_uri
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


def unavailable_until(patch: pytest.MonkeyPatch, name: str, other: Finish) -> None:
    """Let the next call of a method of the store fail in an outage, during which something else happens."""
    function = getattr(ObjectStore, name)

    @wraps(function)
    def late(*arguments: Any, **named: Any) -> Any:
        if getattr(ObjectStore, name) is late:
            patch.setattr(ObjectStore, name, function)
            other()
            raise UnavailableError("S3 does not answer.")
        return function(*arguments, **named)

    patch.setattr(outages, "LONGEST_PAUSE_SECONDS", 0.0)
    patch.setattr(ObjectStore, name, late)


def found(job: StepContext) -> Job:
    record = job.metadata.jobs.get(job.job_id)
    assert record is not None
    return record


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
    with pytest.raises(PermanentError, match=r"made from other inputs.*`s2v retry .*run `s2v stitch` again"):
        mux_audio.run(replacement)
    with pytest.raises(PermanentError, match="run `s2v mux-audio` again"):
        validate.run(replacement)
    for step in (stitch, mux_audio, validate):
        step.run(replacement)
    clip = replacement.clip_manifest(0).outputs["clip"]
    assert replacement.manifest(job.layout.silent_manifest, STITCH).inputs["clip_0000"].sha256 == clip.sha256
    silent = replacement.manifest(job.layout.silent_manifest, STITCH).outputs["silent"]
    assert replacement.manifest(job.layout.mux_manifest, MUX_AUDIO).inputs["silent"].sha256 == silent.sha256
    assert replacement.manifest(job.layout.report_manifest, VALIDATE)


def test_a_cancelled_job_is_not_published(job: StepContext, monkeypatch: pytest.MonkeyPatch) -> None:
    """A publish that waits for S3 until the job is cancelled stores no video, and the job stays cancelled."""
    for step in (stitch, mux_audio, validate):
        step.run(job)
    unavailable_until(monkeypatch, "upload", lambda: job.metadata.jobs.cancel(job.job_id))
    with pytest.raises(TransientError, match="has ended since this process began"):
        run_step(publish.run, step=PUBLISH, job_id=job.job_id)
    assert found(job).status == "cancelled"
    assert not job.store.exists(output_video_uri(job.settings, job.job_id))


def test_the_next_start_is_not_replaced_by_an_earlier_one(
    job: StepContext, replacement: StepContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step that waits for S3 until the job runs again with another clip does not store its own video."""

    def start_again() -> None:
        job.metadata.jobs.cancel(job.job_id)
        job.metadata.jobs.enqueue(job.job_id, {}, dag_run_id="run-2", began_at=replacement.began_at)
        job.metadata.jobs.start(job.job_id, began_at=replacement.began_at)
        render(replacement, 255 - moving_frames())
        stitch.run(replacement)

    unavailable_until(monkeypatch, "upload", start_again)
    with pytest.raises(TransientError, match="was started again since this process began"):
        run_step(stitch.run, step=STITCH, job_id=job.job_id)
    clip = job.clip_manifest(0).outputs["clip"]
    assert job.manifest(job.layout.silent_manifest, STITCH).inputs["clip_0000"].sha256 == clip.sha256


def test_a_late_first_step_does_not_restart_a_finished_job(
    job: StepContext, finish: Finish, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A first step that waits for PostgreSQL until its replacement has finished the job leaves the job succeeded."""
    once_before(monkeypatch, JobRepository, "enqueue", finish)
    with pytest.raises(TransientError, match="has ended since this process began"):
        run_step(stage_inputs.run, step=STAGE_INPUTS, job_id=job.job_id, request_json="{}")
    assert (found(job).status, job.store.exists(job.layout.result)) == ("succeeded", True)


def test_a_late_failure_is_not_the_end_of_a_finished_job(job: StepContext, finish: Finish) -> None:
    """A step that fails after its replacement has finished the job leaves the job succeeded."""

    def fail(_: StepContext) -> dict[str, Any]:
        finish()
        raise PermanentError("The clips do not fit.")

    with pytest.raises(PermanentError, match="do not fit"):
        run_step(fail, step=STITCH, job_id=job.job_id)
    assert (found(job).status, found(job).reason) == ("succeeded", None)
