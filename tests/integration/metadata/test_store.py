"""Check the values that each call of the metadata store writes."""

from collections.abc import Callable
from datetime import UTC, datetime

import pytest
import sqlalchemy as sa

from s2v_tasks.errors import PermanentError
from s2v_tasks.metadata.store import MetadataStore
from s2v_tasks.schemas.job import AttemptOutcome
from s2v_tasks.schemas.manifest import Artifact, ClipFacts, Manifest, Producer
from s2v_tasks.schemas.plan import InheritedClip, Plan
from tests.integration.metadata.conftest import job

FACTS = ClipFacts(start_frame=0, end_frame=16)


def facts(**values: float) -> ClipFacts:
    return FACTS.model_copy(update=values)


REQUEST = {"prompt": "A person speaks.", "audio_uri": "s3://in/a.wav"}
MakePlan = Callable[..., Plan]
Planned = Callable[..., MetadataStore]


def test_states_of_a_job(metadata: MetadataStore, plan: MakePlan) -> None:
    """From queued to succeeded, each state has its times in UTC, its columns and its event."""
    metadata.jobs.enqueue("job-1", REQUEST)
    assert (job(metadata).status, job(metadata).request, job(metadata).started_at) == ("queued", REQUEST, None)
    metadata.jobs.start("job-1")
    metadata.jobs.record_plan("job-1", plan(2))
    record = job(metadata)
    assert (record.status, record.num_clip, record.num_frames) == ("running", 2, 96)
    assert (record.width, record.height, record.estimated_gpu_seconds) == (480, 832, 12.5)
    metadata.jobs.succeed("job-1", "s3://out/job-1.mp4", "ab" * 32)
    record = job(metadata)
    assert (record.status, record.video_uri, record.sha256) == ("succeeded", "s3://out/job-1.mp4", "ab" * 32)
    assert record.started_at is not None
    assert record.finished_at is not None
    assert record.created_at <= record.started_at <= record.finished_at <= record.updated_at
    assert record.finished_at.utcoffset() == datetime.now(UTC).utcoffset()
    assert [event.event for event in record.events] == ["job_queued", "job_started", "job_planned", "job_succeeded"]


def test_a_job_that_runs_is_not_started_again(metadata: MetadataStore) -> None:
    """Starting twice changes neither the time of the start nor the events."""
    metadata.jobs.enqueue("job-1", REQUEST)
    metadata.jobs.start("job-1")
    before = job(metadata)
    metadata.jobs.start("job-1")
    assert job(metadata) == before


def test_a_failed_job_that_is_started_again_runs_without_a_reason(metadata: MetadataStore, planned: Planned) -> None:
    """A restart clears reason and end of the job; its events keep them."""
    planned().jobs.fail("job-1", "The speech is silent.")
    assert (job(metadata).status, job(metadata).reason) == ("failed", "The speech is silent.")
    assert job(metadata).finished_at is not None
    metadata.jobs.start("job-1")
    record = job(metadata)
    assert (record.status, record.reason, record.finished_at) == ("running", None, None)
    assert record.events[-2].detail == {"reason": "The speech is silent."}


def test_a_job_that_was_never_queued_can_fail(metadata: MetadataStore) -> None:
    """The reason of a request that could not be read is stored with a new job."""
    metadata.jobs.fail("job-1", "The request is not JSON.")
    assert (job(metadata).status, job(metadata).request) == ("failed", None)


def test_a_failed_job_renders_nothing(metadata: MetadataStore, planned: Planned) -> None:
    """A rendering clip fails with its job; finished and pending clips keep their status."""
    planned(3)
    metadata.clips.start("job-1", 0, "f0")
    metadata.clips.succeed("job-1", 0, facts=facts(render_seconds=1.0), reused=False)
    metadata.clips.start("job-1", 1, "f1")
    before = [clip.updated_at for clip in job(metadata).clips]
    metadata.jobs.fail("job-1", "Killed.")
    clips = job(metadata).clips
    assert [clip.status for clip in clips] == ["succeeded", "failed", "pending"]
    assert [clip.updated_at > old for clip, old in zip(clips, before, strict=True)] == [False, True, False]


def test_states_of_a_clip(metadata: MetadataStore, planned: Planned) -> None:
    """A clip counts its attempts, shows its progress, and keeps the time of its rendering when it is reused."""
    planned().clips.start("job-1", 1, "f1")
    metadata.clips.record_progress("job-1", 1, step=7, num_steps=40)
    clip = job(metadata).clips[1]
    assert (clip.status, clip.progress_step, clip.progress_steps, clip.attempts) == ("rendering", 7, 40, 1)
    metadata.clips.fail("job-1", 1, "Out of memory.")
    assert job(metadata).clips[1].status == "failed"
    metadata.clips.start("job-1", 1, "f1")
    metadata.clips.succeed("job-1", 1, facts=facts(render_seconds=2.5, mfu=0.4), reused=False)
    metadata.clips.start("job-1", 1, "f1")
    metadata.clips.succeed("job-1", 1, facts=facts(render_seconds=2.5, mfu=0.4), reused=True)
    clip = job(metadata).clips[1]
    assert (clip.status, clip.attempts, clip.render_seconds, clip.reused) == ("succeeded", 3, 2.5, True)
    assert clip.clip_facts == ClipFacts(start_frame=0, end_frame=16, render_seconds=2.5, mfu=0.4)
    assert (clip.fingerprint, clip.start_frame, clip.end_frame) == ("f1", 48, 96)


def test_an_interrupted_clip_is_pending_again(metadata: MetadataStore, planned: Planned) -> None:
    """The job goes on, so the clip has not failed; its progress stays, because the next attempt continues there."""
    planned(2).clips.start("job-1", 0, "f0")
    metadata.clips.record_progress("job-1", 0, step=3, num_steps=4, eta_seconds=2.5, gpu_memory_bytes=0)
    metadata.clips.fail("job-1", 0, "SIGTERM", outcome=AttemptOutcome.INTERRUPTED)
    clip, event = job(metadata).clips[0], job(metadata).events[-1]
    assert (clip.status, clip.progress_step, clip.eta_seconds) == ("pending", 3, None)
    assert (event.event, event.clip_index, event.detail) == ("clip_interrupted", 0, {"reason": "SIGTERM"})


def test_progress_of_a_clip(metadata: MetadataStore, planned: Planned) -> None:
    """Remaining time and memory are those of the last report; a finished or failed clip has no remaining time."""
    planned(3).clips.record_progress("job-1", 1, step=3, num_steps=4, eta_seconds=2.5, gpu_memory_bytes=2**40)
    clip = job(metadata).clips[1]
    assert (clip.status, clip.eta_seconds, clip.gpu_memory_bytes) == ("rendering", 2.5, 2**40)
    metadata.clips.fail("job-1", 1, "Out of memory.")
    event = job(metadata).events[-1]
    assert (event.event, event.clip_index, event.detail) == ("clip_failed", 1, {"reason": "Out of memory."})
    assert job(metadata).clips[1].eta_seconds is None
    metadata.clips.record_progress("job-1", 1, step=4, num_steps=4, eta_seconds=0.5)
    metadata.clips.succeed("job-1", 1, facts=FACTS, reused=False)
    event = job(metadata).events[-1]
    assert (event.event, event.clip_index, event.detail) == ("clip_succeeded", 1, {"reused": False})
    finished = job(metadata).clips
    metadata.clips.record_progress("job-1", 1, step=2, num_steps=4, eta_seconds=1.5)  # of a process that was replaced
    assert job(metadata).clips == finished
    assert job(metadata).clips[1].eta_seconds is None


def test_a_clip_that_was_inherited_and_is_rendered_is_the_jobs_own(
    metadata: MetadataStore, plan: MakePlan, planned: Planned
) -> None:
    """Rendering the clip, or a new plan, clears its source job and its earlier progress."""
    inherited = InheritedClip(
        clip_index=1, fingerprint="f0", source_job_id="job-0", source_manifest_key="jobs/job-0/m.json"
    )
    planned(3)
    for again in ("rendered", "planned"):
        metadata.clips.record_progress("job-1", 1, step=3, num_steps=4, eta_seconds=2.0, gpu_memory_bytes=2**40)
        metadata.clips.inherit("job-1", inherited, facts=facts(render_seconds=2.0))
        clip = job(metadata).clips[1]
        assert (clip.status, clip.reused, clip.source_job_id, clip.fingerprint) == ("succeeded", True, "job-0", "f0")
        assert (clip.render_seconds, clip.clip_facts) == (
            2.0,
            facts(render_seconds=2.0),
        )
        event = job(metadata).events[-1]
        assert (event.event, event.clip_index, event.detail) == ("clip_inherited", 1, {"source_job_id": "job-0"})
        if again == "rendered":
            metadata.clips.start("job-1", 1, "f1")
            assert job(metadata).clips[1].fingerprint == "f1"
        else:
            metadata.jobs.record_plan("job-1", plan(3))
        clip = job(metadata).clips[1]
        assert clip.status == ("rendering" if again == "rendered" else "pending")
        assert (clip.reused, clip.source_job_id, clip.progress_step) == (False, None, None)
        assert (clip.eta_seconds, clip.gpu_memory_bytes) == (None, None)
    assert [c.status for c in job(metadata).clips] == ["pending"] * 3


def test_columns_for_searches_of_a_job(metadata: MetadataStore, plan: MakePlan) -> None:
    """Preset, priority, labels and parent come from the request, the price from the plan; the first source stays."""
    fields = {"preset": "quick", "priority": "high", "labels": {"team": "a"}, "parent_job_id": "job-0", "from_clip": 2}
    metadata.jobs.enqueue("job-1", REQUEST | fields, source="drop")
    metadata.jobs.enqueue("job-1", REQUEST | fields, source="ui", dag_run_id="manual__1")
    metadata.jobs.record_plan("job-1", plan(2))
    record = job(metadata)
    assert {name: getattr(record, name) for name in fields} == fields
    assert (record.source, record.dag_run_id) == ("drop", "manual__1")
    assert (record.gpu, record.currency) == ("h100", "USD")
    assert record.cost_per_gpu_hour == pytest.approx(0.1 / 12.5 * 3600)
    metadata.jobs.fail("job-1", "Its request was wrong.")
    metadata.jobs.enqueue("job-1", {"preset": 3, "priority": "urgent", "labels": "a", "from_clip": "x"})
    record = job(metadata)
    assert (record.preset, record.priority, record.labels, record.from_clip) == (None, "normal", {}, None)
    assert (record.source, record.dag_run_id) == ("drop", "manual__1")
    metadata.jobs.fail("job-1", "Its request was wrong.")
    metadata.jobs.enqueue("job-1", {"from_clip": 10**30})
    assert job(metadata).from_clip is None


def test_only_jobs_without_a_run_of_their_own_wait_to_be_started(metadata: MetadataStore, engine: sa.Engine) -> None:
    """Jobs of a batch wait for the queue; a job that its own run has queued does not."""
    metadata.jobs.enqueue("job-1", REQUEST)
    metadata.jobs.enqueue("job-2", REQUEST, source="ui", dag_run_id="manual__1")
    assert MetadataStore(engine).queue.next(max_running=9) == []
    metadata.jobs.enqueue("job-3", REQUEST, source="batch")
    assert [job.job_id for job in MetadataStore(engine).queue.next(max_running=9)] == ["job-3"]


def test_a_new_plan_replaces_the_clips(metadata: MetadataStore, plan: MakePlan, planned: Planned) -> None:
    """Clips beyond the new plan are deleted; the others are pending with their new frames."""
    planned(3).clips.start("job-1", 0, "f0")
    metadata.jobs.record_plan("job-1", plan(2, infer_frames=80))
    clips = job(metadata).clips
    assert [(clip.start_frame, clip.end_frame, clip.status) for clip in clips] == [
        (0, 80, "pending"),
        (80, 160, "pending"),
    ]


def test_artifacts_are_recorded_by_key(metadata: MetadataStore) -> None:
    """An object that is written again replaces its row."""
    metadata.jobs.enqueue("job-1", REQUEST)
    for size_bytes in (10, 5 * 1024**3):
        artifact = Artifact(key="jobs/job-1/plan.json", sha256="00", size_bytes=size_bytes)
        now = datetime.now(UTC)
        metadata.artifacts.record(
            Manifest(
                step="plan_clips",
                job_id="job-1",
                fingerprint="f",
                producer=Producer(package_version="1"),
                inputs={},
                outputs={"plan": artifact},
                started_at=now,
                finished_at=now,
            )
        )
    (row,) = job(metadata).artifacts
    assert (row.key, row.step, row.size_bytes) == ("jobs/job-1/plan.json", "plan_clips", 5 * 1024**3)


def test_events_need_no_job(metadata: MetadataStore) -> None:
    """Events from before a job was queued belong to it afterwards."""
    metadata.events.record("job-1", "step_failed", step="stage_inputs", clip_index=None, detail={"error": "no network"})
    metadata.jobs.enqueue("job-1", REQUEST)
    first = job(metadata).events[0]
    assert (first.event, first.step, first.detail) == ("step_failed", "stage_inputs", {"error": "no network"})


def test_jobs_are_listed_newest_first(metadata: MetadataStore) -> None:
    """The list has the newest jobs, without their details."""
    for job_id in ("job-1", "job-2", "job-3"):
        metadata.jobs.enqueue(job_id, REQUEST)
    assert [record.job_id for record in metadata.jobs.recent(limit=2)] == ["job-3", "job-2"]
    assert metadata.jobs.get("job-4") is None


def test_any_text_and_any_number_can_be_recorded(metadata: MetadataStore) -> None:
    """Characters that PostgreSQL cannot store are replaced in reason, request and detail."""
    metadata.jobs.enqueue("job-1", {"prompt\0": ["a\0b", {"seed": (float("nan"), float("inf"))}], "n": 1, "ok": True})
    metadata.jobs.fail("job-1", "no \udcff file\0")
    metadata.events.record("job-1", "step_failed", step="a\0", detail={"loss": float("-inf"), "text": "\ud800é😀"})
    record = job(metadata)
    assert record.request == {"prompt�": ["a�b", {"seed": ["NaN", "Infinity"]}], "n": 1, "ok": True}
    assert record.reason == "no � file�"
    assert record.events[-2].detail == {"reason": "no � file�"}
    assert record.events[-1].step == "a�"
    assert record.events[-1].detail == {"loss": "-Infinity", "text": "�é😀"}


def test_nan_is_stored_in_a_column_of_numbers(metadata: MetadataStore, planned: Planned) -> None:
    """A column of numbers stores NaN."""
    planned().clips.succeed("job-1", 0, facts=facts(render_seconds=float("nan")), reused=False)
    assert str(job(metadata).clips[0].render_seconds) == "nan"


def test_a_value_that_fits_no_column_is_a_permanent_error(metadata: MetadataStore, planned: Planned) -> None:
    """A number beyond the range of its column, and a text with a NUL in a query, are permanent errors."""
    planned()
    with pytest.raises(PermanentError, match=r"cannot hold a value .*out of range"):
        metadata.clips.record_progress("job-1", 0, step=2**40, num_steps=2**40)
    for job_id in ("job\0", "job\udcff"):
        with pytest.raises(PermanentError, match="cannot hold a value"):
            metadata.jobs.get(job_id)


def test_calls_about_unknown_jobs_and_clips_are_refused(metadata: MetadataStore) -> None:
    """The message names the job or the clip, and the step to run first."""
    with pytest.raises(PermanentError, match="Job 'job-1' does not exist: `s2v jobs` lists"):
        metadata.jobs.start("job-1")
    metadata.jobs.enqueue("job-1", REQUEST)
    with pytest.raises(PermanentError, match="Clip 3 of job 'job-1' does not exist: run `s2v plan-clips`"):
        metadata.clips.start("job-1", 3, "f")
