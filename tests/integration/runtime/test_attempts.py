"""Check heartbeats of an attempt, and the wait for an earlier attempt."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from s2v_tasks.errors import TransientError, UnavailableError
from s2v_tasks.metadata.attempts import CONDITIONS, AttemptKey, AttemptRepository, rendering
from s2v_tasks.metadata.store import MetadataStore
from s2v_tasks.planning.planner import PlanInputs, make_plan
from s2v_tasks.runtime import attempts, outages
from s2v_tasks.runtime.attempts import ClipAttempt, ConditionsAttempt, await_earlier_attempt, heartbeats
from s2v_tasks.runtime.context import StepContext, open_context
from s2v_tasks.schemas.manifest import ClipFacts
from s2v_tasks.schemas.plan import Plan, SpeechFacts
from s2v_tasks.schemas.request_parsing import parse_request
from s2v_tasks.schemas.steps import ENCODE_CONDITIONS, RENDER_CLIP, Step
from s2v_tasks.settings import load_settings
from s2v_tasks.steps.plan_clips import installation_of
from s2v_tasks.storage.artifacts import Built, Work

FACTS = ClipFacts(start_frame=0, end_frame=16)


def test_gpu_seconds_are_recorded_while_the_work_goes_on(
    postgres_url: str, engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GPU-seconds grow during the work, and nothing is written after its end."""
    monkeypatch.setenv("S2V_DATABASE_URL", postgres_url)
    load_settings.cache_clear()
    monkeypatch.setattr(attempts, "BEAT_SECONDS", 0.02)
    metadata = MetadataStore(engine)
    metadata.jobs.enqueue("job-1", {})

    def seconds() -> float:
        job = metadata.jobs.get("job-1")
        assert job is not None
        return job.attempts[0].gpu_seconds or 0.0

    def grows(above: float) -> float:
        deadline = time.monotonic() + 10
        while (found := seconds()) <= above and time.monotonic() < deadline:
            time.sleep(0.01)
        assert found > above
        return found

    with open_context("job-1", load_settings()) as ctx:
        ctx.metadata.conditions.start("job-1")
        with heartbeats(ctx, CONDITIONS):
            grows(grows(0.0))
        assert "heartbeats" not in [thread.name for thread in threading.enumerate()]


def plan_of_three_clips(job_id: str) -> Plan:
    uris = {"image_uri": "s3://inputs/a.png", "audio_uri": "s3://inputs/a.wav"}
    return make_plan(
        parse_request(uris | {"prompt": "A woman speaks.", "infer_frames": 16}),
        job_id,
        PlanInputs(SpeechFacts(num_samples=48_000, sample_rate=16_000), (832, 480)),
        installation_of(load_settings()),
    )


@pytest.fixture
def ctx(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[StepContext]:
    """A job whose conditions and clips 0 and 1 are in progress in other processes, with recent heartbeats."""
    monkeypatch.setenv("S2V_DATABASE_URL", postgres_url)
    load_settings.cache_clear()
    with open_context("job-1", load_settings()) as context:
        for job_id in ("job-1", "job-2"):
            context.metadata.jobs.enqueue(job_id, {})
            context.metadata.jobs.record_plan(job_id, plan_of_three_clips(job_id))
        context.metadata.conditions.start("job-1")
        for clip_index in (0, 1):
            context.metadata.clips.start("job-1", clip_index, f"f{clip_index}")
        yield context


@pytest.fixture
def polls(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], None]]:
    """Events between two polls of the earlier attempt; the test fails if none is left."""
    events: list[Callable[[], None]] = []
    monkeypatch.setattr(attempts.time, "sleep", lambda _: events.pop(0)())
    return events


@pytest.mark.parametrize("work", [CONDITIONS, rendering(0), rendering(1)])
@pytest.mark.parametrize("outcome", ["succeeded", "failed", "interrupted"])
def test_an_attempt_that_still_runs_is_waited_for(
    ctx: StepContext, polls: list[Callable[[], None]], work: AttemptKey, outcome: str
) -> None:
    """A second process of the same task waits until the first has ended, and then finds its outputs."""

    def end() -> None:
        if work == CONDITIONS:
            ctx.metadata.conditions.end("job-1", outcome="failed" if outcome == "interrupted" else outcome)  # type: ignore[arg-type]
        elif outcome == "succeeded":
            ctx.metadata.clips.succeed("job-1", work.clip_index or 0, facts=FACTS, reused=False)
        else:
            ctx.metadata.clips.fail("job-1", work.clip_index or 0, "x", outcome=outcome)  # type: ignore[arg-type]

    polls += [lambda: None, lambda: ctx.metadata.attempts.heartbeat("job-1", work), end]
    await_earlier_attempt(ctx, work)
    assert polls == []


def test_an_attempt_that_outlives_the_failure_of_its_job_is_waited_for(
    ctx: StepContext, polls: list[Callable[[], None]]
) -> None:
    """A new start of the job does not render a clip that a process of the failed start still renders."""
    ctx.metadata.jobs.fail("job-1", "A clip of another chain is black.")
    polls += [
        lambda: ctx.metadata.attempts.heartbeat("job-1", rendering(1)),
        lambda: ctx.metadata.clips.succeed("job-1", 1, facts=FACTS, reused=False),
    ]
    await_earlier_attempt(ctx, rendering(1))
    assert polls == []


@pytest.mark.usefixtures("polls")
def test_only_the_same_piece_of_work_of_the_same_job_is_waited_for(ctx: StepContext) -> None:
    """Attempts at other clips or other jobs are not waited for."""
    await_earlier_attempt(ctx, rendering(2))
    with open_context("job-2", load_settings()) as other:
        await_earlier_attempt(other, rendering(0))


@pytest.mark.parametrize(("silent_seconds", "waits"), [(14, True), (16, False)])
def test_an_attempt_without_a_sign_of_life_is_not_waited_for(
    ctx: StepContext, engine: sa.Engine, polls: list[Callable[[], None]], silent_seconds: int, waits: bool
) -> None:
    """An attempt that misses three heartbeats counts as dead."""
    with engine.begin() as connection:  # it began ten minutes before its last sign of life, on two GPUs
        connection.execute(
            sa.text(
                "UPDATE attempts SET world_size = 2, gpu_seconds = 1200, "
                "started_at = now() - make_interval(secs => :silent + 600) WHERE clip_index = 0"
            ),
            {"silent": silent_seconds},
        )
    polls += [lambda: ctx.metadata.clips.fail("job-1", 0, "x")] * waits
    await_earlier_attempt(ctx, rendering(0))
    assert polls == []


def silent_since(engine: sa.Engine, seconds: float) -> None:
    """Set the last heartbeat of the attempt at clip 0 to this many seconds ago."""
    with engine.begin() as connection:
        connection.execute(
            sa.text(
                "UPDATE attempts SET gpu_seconds = 60, started_at = now() - make_interval(secs => :ago) "
                "WHERE clip_index = 0"
            ),
            {"ago": seconds + 60},
        )


@pytest.mark.parametrize(("silent_seconds", "waits"), [(50, True), (58, False)])
def test_silence_while_the_database_was_away_does_not_count(
    ctx: StepContext, engine: sa.Engine, polls: list[Callable[[], None]], silent_seconds: int, waits: bool
) -> None:
    """Heartbeats that are missing because the database was unavailable do not count."""
    silent_since(engine, silent_seconds)
    now = time.monotonic()
    ctx.retry_policy.latest_outage = (now - 40, now - 10)
    polls += [lambda: ctx.metadata.clips.fail("job-1", 0, "x")] * waits
    await_earlier_attempt(ctx, rendering(0))
    assert polls == []


def test_an_attempt_is_given_three_beats_after_an_outage(
    ctx: StepContext, engine: sa.Engine, polls: list[Callable[[], None]]
) -> None:
    """An attempt without a heartbeat for three intervals after an outage counts as dead."""
    silent_since(engine, 50)
    now = time.monotonic()
    ctx.retry_policy.latest_outage = (now - 46, now - 16)
    await_earlier_attempt(ctx, rendering(0))
    assert polls == []


def test_a_poll_that_outlasts_an_outage_is_repeated(
    ctx: StepContext, engine: sa.Engine, polls: list[Callable[[], None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an outage, the poll is repeated, because the other process may send its heartbeat a moment later."""
    silent_since(engine, 30)
    is_alive, asked = AttemptRepository.is_alive, []

    def away_first(attempts: AttemptRepository, *arguments: Any, **named: Any) -> bool:
        asked.append(named["within_seconds"])
        if len(asked) == 1:
            raise UnavailableError("connection refused")
        return is_alive(attempts, *arguments, **named)

    monkeypatch.setattr(AttemptRepository, "is_alive", away_first)
    monkeypatch.setattr(outages, "LONGEST_PAUSE_SECONDS", 0.0)
    polls += [
        lambda: ctx.metadata.attempts.heartbeat("job-1", rendering(0)),
        lambda: ctx.metadata.clips.fail("job-1", 0, "x"),
    ]
    await_earlier_attempt(ctx, rendering(0))
    assert polls == []


def test_sigterm_ends_the_wait(ctx: StepContext, polls: list[Callable[[], None]]) -> None:
    """SIGTERM ends the wait for an earlier attempt at once."""
    asked: list[bool] = []
    ctx.retry_policy.asked_to_end = lambda: bool(asked)
    polls += [lambda: None, lambda: asked.append(True)]
    with pytest.raises(TransientError, match="had to end"):
        await_earlier_attempt(ctx, rendering(0))
    assert polls == []


def test_the_wait_ends_after_15_minutes(ctx: StepContext, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wait ends with a transient error before the other ranks reach their time limit."""
    now = iter([0.0, 900.0, 900.1])
    monkeypatch.setattr(attempts.time, "monotonic", lambda: next(now))
    monkeypatch.setattr(attempts.time, "sleep", lambda _: None)
    with pytest.raises(TransientError, match="for 15 minutes"):
        await_earlier_attempt(ctx, rendering(0))


@pytest.mark.parametrize("step", [RENDER_CLIP, ENCODE_CONDITIONS])
def test_a_process_that_was_silent_for_long_ends_its_own_attempt(
    ctx: StepContext, step: Step, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A replacement began meanwhile; the late failure of the first process leaves it and the clip running."""
    monkeypatch.setattr(attempts, "_SILENT_SECONDS", 0.0)  # no wait for the attempts of the fixture
    monkeypatch.setattr(StepContext, "produce", lambda _self, _work, build: build(tmp_path))
    is_clip = step == RENDER_CLIP
    work = Work(step, "job-2", "key", "f2", {}, clip_index=2 if is_clip else None)
    attempt = ClipAttempt(ctx, work, world_size=1) if is_clip else ConditionsAttempt(ctx, work)

    def replaced(_folder: Path) -> Built:
        _ = ctx.metadata.clips.start("job-2", 2, "f2") if is_clip else ctx.metadata.conditions.start("job-2")
        raise TransientError("S3 is away.")

    with attempt, pytest.raises(TransientError, match="S3 is away"):
        attempt.produce(replaced)
    job = ctx.metadata.jobs.get("job-2")
    assert job is not None
    assert [one.outcome for one in job.attempts] == ["lost", "running"]
    assert job.clips[2].status == ("rendering" if is_clip else "pending")


@pytest.mark.parametrize("step", [RENDER_CLIP, ENCODE_CONDITIONS])
@pytest.mark.parametrize("configured", ["gpu-7", None])
def test_an_attempt_is_recorded_with_its_machine(
    ctx: StepContext, step: Step, configured: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The node is S2V_NODE, or the name of the host."""
    monkeypatch.setattr(attempts, "_SILENT_SECONDS", 0.0)  # no wait for the attempts of the fixture
    monkeypatch.setattr(StepContext, "produce", lambda _self, _work, build: build(tmp_path))
    ctx = replace(ctx, settings=ctx.settings.model_copy(update={"node": configured}))
    is_clip = step == RENDER_CLIP
    work = Work(step, "job-2", "key", "f2", {}, clip_index=2 if is_clip else None)
    with ClipAttempt(ctx, work, world_size=1) if is_clip else ConditionsAttempt(ctx, work) as attempt:
        attempt.produce(lambda _folder: Built({}, FACTS))
    job = ctx.metadata.jobs.get("job-2")
    assert job is not None
    assert [one.node for one in job.attempts] == [configured or socket.gethostname()]
