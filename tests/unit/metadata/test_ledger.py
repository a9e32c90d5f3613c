"""The ledger: what each call leaves on record."""

from collections.abc import Iterator
from datetime import UTC, datetime

import psycopg
import pytest
from sqlalchemy.engine import make_url

from s2v_tasks.embedded.process import free_ports
from s2v_tasks.errors import ConfigurationError, PermanentError, TransientError
from s2v_tasks.metadata.queue import JobQueue
from s2v_tasks.metadata.records import JobRecord
from s2v_tasks.metadata.repository import Ledger
from s2v_tasks.metadata.session import create_engine, engine_from_settings
from s2v_tasks.schemas.manifest import Artifact, Manifest, Producer
from s2v_tasks.schemas.plan import ClipPlan, Estimate, Plan, Sampling, SpeechFacts
from s2v_tasks.settings import Settings

REQUEST = {"prompt": "A person speaks.", "audio_uri": "s3://in/a.wav"}


@pytest.fixture
def ledger(postgres_url: str) -> Iterator[Ledger]:
    engine = create_engine(postgres_url)
    yield Ledger(engine)
    engine.dispose()


def plan(num_clip: int, infer_frames: int = 48) -> Plan:
    clips = tuple(
        ClipPlan(
            clip_index=index,
            chain_index=0,
            predecessor=index - 1 if index else None,
            successor=index + 1 if index + 1 < num_clip else None,
            infer_frames=infer_frames,
            start_frame=infer_frames * index,
            end_frame=infer_frames * (index + 1),
            seed=index,
            latent_shape=(16, infer_frames // 4, 104, 60),
            tokens=100,
            pflops=1.0,
        )
        for index in range(num_clip)
    )
    return Plan(
        job_id="job-1",
        preset="quick",
        model="tiny",
        width=480,
        height=832,
        speech=SpeechFacts(num_samples=16000, sample_rate=16000),
        num_frames=num_clip * infer_frames,
        covered_seconds=1.0,
        sampling=Sampling(
            sample_steps=2, sample_guide_scale=4.5, sample_shift=3.0, sample_solver="unipc", start_from_ref=False
        ),
        base_seed=0,
        clips=clips,
        estimate=Estimate(
            pflops=2.0,
            gpu="h100",
            gpu_seconds=12.5,
            longest_chain_seconds=12.5,
            cost=0.1,
            currency="USD",
            peak_gpu_memory_gib=40.0,
        ),
    )


def job(ledger: Ledger) -> JobRecord:
    record = ledger.job("job-1")
    assert record is not None
    return record


def planned(ledger: Ledger, num_clip: int = 2) -> Ledger:
    ledger.job_queued("job-1", REQUEST)
    ledger.job_started("job-1")
    ledger.job_planned("job-1", plan(num_clip))
    return ledger


def test_a_job_on_its_road(ledger: Ledger) -> None:
    """From queued to succeeded, each state has its times in UTC, its columns and its event."""
    ledger.job_queued("job-1", REQUEST)
    assert (job(ledger).status, job(ledger).request, job(ledger).started_at) == ("queued", REQUEST, None)
    ledger.job_started("job-1")
    ledger.job_planned("job-1", plan(2))
    record = job(ledger)
    assert (record.status, record.num_clip, record.num_frames) == ("running", 2, 96)
    assert (record.width, record.height, record.estimated_gpu_seconds) == (480, 832, 12.5)
    ledger.job_succeeded("job-1", "s3://out/job-1.mp4", "ab" * 32)
    record = job(ledger)
    assert (record.status, record.video_uri, record.sha256) == ("succeeded", "s3://out/job-1.mp4", "ab" * 32)
    assert record.started_at is not None
    assert record.finished_at is not None
    assert record.created_at <= record.started_at <= record.finished_at <= record.updated_at
    assert record.finished_at.utcoffset() == datetime.now(UTC).utcoffset()
    assert [event.event for event in record.events] == ["job_queued", "job_started", "job_planned", "job_succeeded"]


def test_a_job_that_runs_is_not_started_again(ledger: Ledger) -> None:
    """Starting twice changes neither the time of the start nor the events."""
    ledger.job_queued("job-1", REQUEST)
    ledger.job_started("job-1")
    before = job(ledger)
    ledger.job_started("job-1")
    assert job(ledger) == before


def test_a_failed_job_that_is_started_again_runs_without_a_reason(ledger: Ledger) -> None:
    """A restart takes back reason and end, and leaves both in the events."""
    planned(ledger).job_failed("job-1", "The speech is silent.")
    assert (job(ledger).status, job(ledger).reason) == ("failed", "The speech is silent.")
    assert job(ledger).finished_at is not None
    ledger.job_started("job-1")
    record = job(ledger)
    assert (record.status, record.reason, record.finished_at) == ("running", None, None)
    assert record.events[-2].detail == {"reason": "The speech is silent."}


def test_a_job_that_was_never_queued_can_fail(ledger: Ledger) -> None:
    """The reason of a request that could not even be read is on record."""
    ledger.job_failed("job-1", "The request is not JSON.")
    assert (job(ledger).status, job(ledger).request) == ("failed", None)


def test_a_failed_job_renders_nothing(ledger: Ledger) -> None:
    """A clip whose process was killed is failed with its job; finished and pending clips stay what they are."""
    planned(ledger, 3)
    ledger.clip_started("job-1", 0, "f0")
    ledger.clip_succeeded("job-1", 0, facts={"render_seconds": 1.0}, reused=False)
    ledger.clip_started("job-1", 1, "f1")
    ledger.job_failed("job-1", "Killed.")
    assert [clip.status for clip in job(ledger).clips] == ["succeeded", "failed", "pending"]


def test_a_clip_on_its_road(ledger: Ledger) -> None:
    """A clip counts its attempts, shows its progress, and keeps the time of its rendering when it is reused."""
    planned(ledger).clip_started("job-1", 1, "f1")
    ledger.clip_progress("job-1", 1, step=7, num_steps=40)
    clip = job(ledger).clips[1]
    assert (clip.status, clip.progress_step, clip.progress_steps, clip.attempts) == ("rendering", 7, 40, 1)
    ledger.clip_failed("job-1", 1, "Out of memory.")
    assert job(ledger).clips[1].status == "failed"
    ledger.clip_started("job-1", 1, "f1")
    ledger.clip_succeeded("job-1", 1, facts={"render_seconds": 2.5, "mfu": 0.4}, reused=False)
    ledger.clip_started("job-1", 1, "f1")
    ledger.clip_succeeded("job-1", 1, facts={"render_seconds": 2.5, "mfu": 0.4}, reused=True)
    clip = job(ledger).clips[1]
    assert (clip.status, clip.attempts, clip.render_seconds, clip.reused) == ("succeeded", 3, 2.5, True)
    assert clip.facts == {"render_seconds": 2.5, "mfu": 0.4}
    assert (clip.fingerprint, clip.start_frame, clip.end_frame) == ("f1", 48, 96)


def test_every_attempt_is_on_record_with_its_gpu_seconds(ledger: Ledger, postgres_url: str) -> None:
    """Seconds times GPUs count whatever became of the attempt; reusing a clip begins none."""
    planned(ledger).clip_started("job-1", 0, "f0", world_size=2)
    with psycopg.connect(postgres_url) as connection:
        connection.execute("UPDATE attempts SET started_at = now() - interval '10 s'")
    ledger.clip_failed("job-1", 0, "Out of memory.")
    ledger.clip_started("job-1", 0, "f0")
    ledger.clip_failed("job-1", 0, "SIGTERM", outcome="interrupted")
    ledger.clip_started("job-1", 0, "f0")
    ledger.clip_succeeded("job-1", 0, facts={}, reused=False)
    ledger.clip_succeeded("job-1", 0, facts={}, reused=True)
    attempts = job(ledger).attempts
    assert [(a.clip_index, a.attempt, a.outcome, a.reason) for a in attempts] == [
        (0, 1, "failed", "Out of memory."),
        (0, 2, "interrupted", "SIGTERM"),
        (0, 3, "succeeded", None),
    ]
    assert attempts[0].gpu_seconds == pytest.approx(20, abs=2)
    assert attempts[0].finished_at is not None
    assert attempts[2].gpu_seconds == pytest.approx(0, abs=1)


def test_an_attempt_that_nobody_ended_is_lost(ledger: Ledger, postgres_url: str) -> None:
    """When the next one begins, or the job ends, it counts until its last sign of life; a new plan forgets nothing."""
    planned(ledger).clip_started("job-1", 1, "f1")
    with psycopg.connect(postgres_url) as connection:
        connection.execute("UPDATE attempts SET started_at = now() - interval '1 hour'")
        connection.execute("UPDATE clips SET updated_at = now() - interval '59 minutes'")
    ledger.clip_started("job-1", 1, "f1")
    ledger.job_failed("job-1", "Killed.")
    ledger.job_planned("job-1", plan(1))
    ledger.job_planned("job-1", plan(2))
    ledger.clip_started("job-1", 1, "f1")
    attempts = job(ledger).attempts
    assert [(a.attempt, a.outcome) for a in attempts] == [(1, "lost"), (2, "lost"), (3, "running")]
    assert attempts[0].gpu_seconds == pytest.approx(60, abs=1)
    assert job(ledger).clips[1].attempts == 3


def test_a_clip_that_outlives_the_failure_of_its_job_is_no_waste(ledger: Ledger) -> None:
    """Clips of other chains go on while one has failed the job for good: what they make is there to be reused."""
    planned(ledger).clip_started("job-1", 0, "f0")
    ledger.clip_started("job-1", 1, "f1", world_size=2)
    ledger.clip_failed("job-1", 0, "The picture is black.")
    ledger.job_failed("job-1", "render_clip: The picture is black.")
    ledger.clip_succeeded("job-1", 1, facts={}, reused=False)
    assert [attempt.outcome for attempt in job(ledger).attempts] == ["failed", "succeeded"]
    (spent,) = ledger.spending()
    assert spent.used_gpu_seconds > 0


def test_a_job_keeps_what_it_is_searched_by(ledger: Ledger) -> None:
    """Preset, priority, labels and parent come from the request, the first source stays, the price is the plan's."""
    fields = {"preset": "quick", "priority": "high", "labels": {"team": "a"}, "parent_job_id": "job-0", "from_clip": 2}
    ledger.job_queued("job-1", REQUEST | fields, source="drop")
    ledger.job_queued("job-1", REQUEST | fields, source="ui", dag_run_id="manual__1")
    ledger.job_planned("job-1", plan(2))
    record = job(ledger)
    assert {name: getattr(record, name) for name in fields} == fields
    assert (record.source, record.dag_run_id) == ("drop", "manual__1")
    assert (record.gpu, record.currency) == ("h100", "USD")
    assert record.cost_per_gpu_hour == pytest.approx(0.1 / 12.5 * 3600)
    ledger.job_queued("job-1", {"preset": 3, "priority": "urgent", "labels": "a", "from_clip": "x"})
    record = job(ledger)
    assert (record.preset, record.priority, record.labels, record.from_clip) == (None, "normal", {}, None)
    assert (record.source, record.dag_run_id) == ("drop", "manual__1")
    ledger.job_queued("job-1", {"from_clip": 10**30})
    assert job(ledger).from_clip is None


def test_only_jobs_of_the_doors_wait_to_be_started(ledger: Ledger, postgres_url: str) -> None:
    """A job whose run queues it itself is not started a second time, though it is queued for a moment."""
    engine = create_engine(postgres_url)
    ledger.job_queued("job-1", REQUEST)
    ledger.job_queued("job-2", REQUEST, source="ui", dag_run_id="manual__1")
    assert JobQueue(engine).next(max_running=9) == []
    ledger.job_queued("job-3", REQUEST, source="batch")
    assert [job.job_id for job in JobQueue(engine).next(max_running=9)] == ["job-3"]
    engine.dispose()


def test_a_new_plan_replaces_the_clips(ledger: Ledger) -> None:
    """Clips beyond the new plan are forgotten, the others are pending with their new frames."""
    planned(ledger, 3).clip_started("job-1", 0, "f0")
    ledger.job_planned("job-1", plan(2, infer_frames=80))
    clips = job(ledger).clips
    assert [(clip.start_frame, clip.end_frame, clip.status) for clip in clips] == [
        (0, 80, "pending"),
        (80, 160, "pending"),
    ]


def test_artifacts_are_recorded_by_key(ledger: Ledger) -> None:
    """An object that is written again replaces its row."""
    ledger.job_queued("job-1", REQUEST)
    for size_bytes in (10, 5 * 1024**3):
        artifact = Artifact(key="jobs/job-1/plan.json", sha256="00", size_bytes=size_bytes)
        now = datetime.now(UTC)
        ledger.record_artifacts(
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
    (row,) = job(ledger).artifacts
    assert (row.key, row.step, row.size_bytes) == ("jobs/job-1/plan.json", "plan_clips", 5 * 1024**3)


def test_events_need_no_job(ledger: Ledger) -> None:
    """What befell a job before it was queued is found with it afterwards."""
    ledger.event("job-1", "step_failed", step="stage_inputs", clip_index=None, detail={"error": "no network"})
    ledger.job_queued("job-1", REQUEST)
    first = job(ledger).events[0]
    assert (first.event, first.step, first.detail) == ("step_failed", "stage_inputs", {"error": "no network"})


def test_jobs_are_listed_newest_first(ledger: Ledger) -> None:
    """The list has the newest jobs, without their details."""
    for job_id in ("job-1", "job-2", "job-3"):
        ledger.job_queued(job_id, REQUEST)
    assert [record.job_id for record in ledger.jobs(limit=2)] == ["job-3", "job-2"]
    assert ledger.job("job-4") is None


def test_any_text_and_any_number_can_be_recorded(ledger: Ledger) -> None:
    """What PostgreSQL cannot hold is replaced in reason, request and detail, and the call succeeds."""
    ledger.job_queued("job-1", {"prompt\0": ["a\0b", {"seed": (float("nan"), float("inf"))}], "n": 1, "ok": True})
    ledger.job_failed("job-1", "no \udcff file\0")
    ledger.event("job-1", "step_failed", step="a\0", detail={"loss": float("-inf"), "text": "\ud800é😀"})
    record = job(ledger)
    assert record.request == {"prompt�": ["a�b", {"seed": ["NaN", "Infinity"]}], "n": 1, "ok": True}
    assert record.reason == "no � file�"
    assert record.events[-2].detail == {"reason": "no � file�"}
    assert record.events[-1].step == "a�"
    assert record.events[-1].detail == {"loss": "-Infinity", "text": "�é😀"}


def test_a_number_that_is_none_stays_one_in_its_column(ledger: Ledger) -> None:
    """A column of numbers holds NaN itself."""
    planned(ledger).clip_succeeded("job-1", 0, facts={"render_seconds": float("nan")}, reused=False)
    assert str(job(ledger).clips[0].render_seconds) == "nan"


def test_a_value_that_fits_no_column_is_a_permanent_error(ledger: Ledger) -> None:
    """A number beyond its column, and text that cannot be asked for, fail the same way in every attempt."""
    planned(ledger)
    with pytest.raises(PermanentError, match=r"cannot hold a value .*out of range"):
        ledger.clip_progress("job-1", 0, step=2**40, num_steps=2**40)
    for job_id in ("job\0", "job\udcff"):
        with pytest.raises(PermanentError, match="cannot hold a value"):
            ledger.job(job_id)


def test_calls_about_unknown_jobs_and_clips_are_refused(ledger: Ledger) -> None:
    """The message names the job, or the clip, and the step to run first."""
    with pytest.raises(PermanentError, match="'job-1' is not on record: run `s2v stage-inputs`"):
        ledger.job_started("job-1")
    ledger.job_queued("job-1", REQUEST)
    with pytest.raises(PermanentError, match="clip 3 of job 'job-1' is not on record: run `s2v plan-clips`"):
        ledger.clip_started("job-1", 3, "f")


def test_a_database_without_tables_names_the_remedy(postgres_url: str) -> None:
    """A database that was never migrated is a configuration error."""
    engine = create_engine(str(make_url(postgres_url).set(database="postgres").render_as_string(hide_password=False)))
    with pytest.raises(ConfigurationError, match="s2v db upgrade"):
        Ledger(engine).jobs()
    engine.dispose()


@pytest.mark.parametrize("change", [{"password": "wrong-secret"}, {"database": "nowhere"}])
def test_a_refused_connection_is_a_configuration_error(postgres_url: str, change: dict[str, str]) -> None:
    """A wrong password or database name is told without the password."""
    url = make_url(postgres_url).set(**change)  # type: ignore[arg-type]
    engine = create_engine(url.render_as_string(hide_password=False))
    with pytest.raises(ConfigurationError, match=f"127.0.0.1:{url.port}/{url.database} refuses") as caught:
        Ledger(engine).jobs()
    assert str(url.password) not in str(caught.value)
    engine.dispose()


def test_a_server_that_is_away_is_a_transient_error() -> None:
    """A refused connection may succeed later; the message names host, port and database, not the password."""
    port = free_ports(1)[0]
    engine = create_engine(f"postgresql://s2v:a-secret@127.0.0.1:{port}/s2v")
    with pytest.raises(TransientError, match=f"127.0.0.1:{port}/s2v cannot be used") as caught:
        Ledger(engine).job_queued("job-1", REQUEST)
    assert "a-secret" not in str(caught.value)
    engine.dispose()


@pytest.mark.parametrize("url", ["", "mysql://u:a-secret@host/db", "postgresql://u:a-secret@host", "a-secret"])
def test_a_url_that_is_none_is_refused_without_showing_it(url: str) -> None:
    """A bad URL is a configuration error that does not repeat it: it may have a password."""
    with pytest.raises(ConfigurationError, match="S2V_DATABASE_URL") as caught:
        create_engine(url)
    assert "a-secret" not in str(caught.value)


def test_no_database_is_a_configuration_error() -> None:
    """Without a setting the message says how to get a database."""
    with pytest.raises(ConfigurationError, match="S2V_DATABASE_URL is not set"):
        engine_from_settings(Settings())  # type: ignore[call-arg]
