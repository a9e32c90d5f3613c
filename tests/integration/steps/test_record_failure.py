"""Check that the reason of a step that could not report it is recorded."""

from dataclasses import replace

import pytest

from s2v_tasks.errors import PermanentError
from s2v_tasks.planning.planner import PlanInputs, make_plan
from s2v_tasks.runtime.context import StepContext, open_context
from s2v_tasks.schemas.manifest import ClipFacts
from s2v_tasks.schemas.plan import Plan, SpeechFacts
from s2v_tasks.schemas.request_parsing import parse_request
from s2v_tasks.schemas.steps import ENCODE_CONDITIONS, RENDER_CLIP, STITCH
from s2v_tasks.settings import Settings
from s2v_tasks.steps import close_job, record_failure
from s2v_tasks.steps.plan_clips import installation_of

FACTS = ClipFacts(start_frame=0, end_frame=16)


@pytest.fixture
def context(context: StepContext) -> StepContext:
    """A running job."""
    context.metadata.jobs.start("my-job")
    return context


def test_the_reason_of_a_dead_step_becomes_the_reason_of_its_job(context: StepContext) -> None:
    """`record-failure` stores the reason, and `close-job` copies it to the job."""
    record_failure.run(context, step=ENCODE_CONDITIONS, reason="The pod ran out of memory.")
    closed = close_job.run(context)
    assert closed == {"status": "failed", "reason": "encode_conditions: The pod ran out of memory."}


def test_the_reason_of_an_unknown_job_is_refused(context: StepContext) -> None:
    """Nothing is stored for a job that does not exist."""
    unknown = replace(context, job_id="no-job")
    with pytest.raises(PermanentError, match=r"Job 'no-job' does not exist: `s2v jobs`"):
        record_failure.run(unknown, step=STITCH, reason="Disk full.")


def test_an_encoding_that_died_is_wasted_until_it_died(context: StepContext) -> None:
    """The attempt at the conditions ends with the reason, before the job is closed."""
    context.metadata.conditions.start("my-job")
    record_failure.run(context, step=ENCODE_CONDITIONS, reason="The pod ran out of memory.")
    job = context.metadata.jobs.get("my-job")
    assert job is not None
    (attempt,) = job.attempts
    assert (attempt.outcome, attempt.reason) == ("failed", "The pod ran out of memory.")


def plan_of_clips(settings: Settings, num_clip: int) -> Plan:
    uris = {"image_uri": "s3://inputs/a.png", "audio_uri": "s3://inputs/a.wav"}
    return make_plan(
        parse_request(uris | {"prompt": "A woman speaks.", "infer_frames": 16}),
        "my-job",
        PlanInputs(SpeechFacts(num_samples=16_000 * num_clip, sample_rate=16_000), (832, 480)),
        installation_of(settings),
    )


def test_of_the_clips_of_a_process_the_one_failed_that_was_rendered(context: StepContext) -> None:
    """Of the clips of a dead process, only the clip in progress fails: finished and pending ones do not change."""
    metadata = context.metadata
    metadata.jobs.record_plan("my-job", plan_of_clips(context.settings, 4))
    metadata.clips.start("my-job", 1, "f1")
    metadata.clips.succeed("my-job", 1, facts=FACTS, reused=False)
    metadata.clips.start("my-job", 2, "f2")
    record_failure.run(context, step=RENDER_CLIP, reason="The pod is gone.", clip_index=1, count=3)
    job = metadata.jobs.get("my-job")
    assert job is not None
    assert [clip.status for clip in job.clips] == ["pending", "succeeded", "failed", "pending"]
    assert [attempt.outcome for attempt in job.attempts] == ["succeeded", "failed"]


def test_a_job_fails_for_the_latest_reason_since_it_was_queued(context: StepContext) -> None:
    """The job gets the reason of the last failed step of this start; reasons of earlier starts are ignored."""
    for step, reason in ((RENDER_CLIP, "First."), (STITCH, "Second."), (RENDER_CLIP, "Third.")):
        record_failure.run(context, step=step, reason=reason)
    assert close_job.run(context)["reason"] == "render_clip: Third."
    context.metadata.jobs.enqueue("my-job", {})
    context.metadata.jobs.start("my-job")
    with open_context("my-job", context.settings) as later:
        assert "killed before it could report a reason" in close_job.run(later)["reason"]


def test_a_job_that_airflow_failed_names_the_task(context: StepContext) -> None:
    """Without a reason of a step, the reason of the job names the task that Airflow failed."""
    assert close_job.run(context, failed_task="clip.wait[1]")["reason"].startswith("Task clip.wait[1] failed")
    context.metadata.jobs.enqueue("my-job", {})
    context.metadata.jobs.start("my-job")
    record_failure.run(context, step=STITCH, reason="Disk full.")
    with open_context("my-job", context.settings) as later:
        assert close_job.run(later, failed_task="clip.wait[1]")["reason"] == "stitch: Disk full."
