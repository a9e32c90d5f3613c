"""Check attempts at clips: each is stored with its cost, in whatever way it ended."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from s2v_tasks.metadata.attempts import CONDITIONS, rendering
from s2v_tasks.metadata.store import MetadataStore
from s2v_tasks.schemas.manifest import ClipFacts
from s2v_tasks.schemas.plan import Plan
from s2v_tasks.schemas.quality import Take, TakeRecord
from tests.integration.metadata.conftest import job

FACTS = ClipFacts(start_frame=0, end_frame=16)

MakePlan = Callable[..., Plan]
Planned = Callable[..., MetadataStore]


def test_every_attempt_is_stored_with_its_gpu_seconds(
    metadata: MetadataStore, postgres_url: str, planned: Planned
) -> None:
    """GPU-seconds are seconds times GPUs for every outcome; reusing a clip starts no attempt."""
    planned().clips.start("job-1", 0, "f0", world_size=2)
    with psycopg.connect(postgres_url) as connection:
        connection.execute("UPDATE attempts SET started_at = now() - interval '1 hour' WHERE job_id = 'job-1'")
    metadata.clips.fail("job-1", 0, "Out of memory.")
    metadata.clips.start("job-1", 0, "f0")
    metadata.clips.fail("job-1", 0, "SIGTERM", outcome="interrupted")
    metadata.clips.start("job-1", 0, "f0")
    metadata.clips.succeed("job-1", 0, facts=FACTS, reused=False)
    metadata.clips.succeed("job-1", 0, facts=FACTS, reused=True)
    attempts = job(metadata).attempts
    assert [(a.clip_index, a.attempt, a.outcome, a.reason) for a in attempts] == [
        (0, 1, "failed", "Out of memory."),
        (0, 2, "interrupted", "SIGTERM"),
        (0, 3, "succeeded", None),
    ]
    assert attempts[0].gpu_seconds == pytest.approx(2 * 3600, abs=60)
    assert attempts[0].finished_at is not None
    assert attempts[2].gpu_seconds == pytest.approx(0, abs=60)
    begun = [event for event in job(metadata).events if event.event == "clip_started"]
    assert [(event.clip_index, event.detail) for event in begun] == [(0, {"attempt": number}) for number in (1, 2, 3)]


def test_an_attempt_knows_its_machine(metadata: MetadataStore, planned: Planned) -> None:
    """The node is in the row of an attempt of either step, and in the event of a clip."""
    planned().conditions.start("job-1", node="gpu-7")
    metadata.clips.start("job-1", 0, "f0", node="gpu-8")
    assert [(attempt.step, attempt.node) for attempt in job(metadata).attempts] == [
        ("encode_conditions", "gpu-7"),
        ("render_clip", "gpu-8"),
    ]
    (begun,) = (event for event in job(metadata).events if event.event == "clip_started")
    assert begun.detail == {"attempt": 1, "node": "gpu-8"}


def test_an_attempt_at_a_take_that_is_not_kept_is_superseded(
    metadata: MetadataStore, postgres_url: str, planned: Planned
) -> None:
    """An attempt at a take that is not kept is superseded and wasted; a changed decision makes it succeeded again."""
    planned()
    for clip_index, fingerprint in ((1, "f1"), (0, "take-0"), (0, "take-1")):
        metadata.clips.start("job-1", clip_index, fingerprint)
        metadata.clips.end_take("job-1", clip_index, reused=False)
    takes = tuple(Take(take=n, seed=n, fingerprint=f"take-{n}", measure_seconds=0.0) for n in range(2))
    for kept, outcomes in ((1, ["superseded", "succeeded"]), (0, ["succeeded", "superseded"])):
        record = TakeRecord(clip_index=0, fingerprint="take-0", takes=takes, kept=kept)
        metadata.clips.record_quality("job-1", record)
        assert [a.outcome for a in job(metadata).attempts] == ["succeeded", *outcomes]
        clip = job(metadata).clips[0]
        assert (clip.fingerprint, clip.takes) == (f"take-{kept}", record)
    with psycopg.connect(postgres_url) as connection:
        connection.execute("UPDATE attempts SET gpu_seconds = 60 * id WHERE job_id = 'job-1' AND clip_index = 0")
        spent = connection.execute("SELECT gpu_seconds FROM attempts WHERE outcome = 'superseded'").fetchall()
    assert [(spending.wasted_gpu_seconds,) for spending in metadata.costs.spending()] == spent


def test_an_attempt_without_an_end_is_lost(
    metadata: MetadataStore, postgres_url: str, plan: MakePlan, planned: Planned
) -> None:
    """An attempt without an end counts until its last heartbeat, also after the job ends or is planned again."""
    planned().clips.start("job-1", 1, "f1")
    with psycopg.connect(postgres_url) as connection:
        connection.execute("UPDATE attempts SET started_at = now() - interval '1 hour' WHERE job_id = 'job-1'")
        connection.execute("UPDATE clips SET updated_at = now() - interval '59 minutes' WHERE job_id = 'job-1'")
    metadata.clips.start("job-1", 1, "f1")
    metadata.jobs.fail("job-1", "Killed.")
    metadata.jobs.record_plan("job-1", plan(1))
    metadata.jobs.record_plan("job-1", plan(2))
    metadata.clips.start("job-1", 1, "f1")
    attempts = job(metadata).attempts
    assert [(a.attempt, a.outcome) for a in attempts] == [(1, "lost"), (2, "lost"), (3, "running")]
    assert attempts[0].gpu_seconds == pytest.approx(60, abs=30)
    assert job(metadata).clips[1].attempts == 3


def test_an_attempt_without_progress_is_lost_at_its_last_sign_of_life(
    metadata: MetadataStore, postgres_url: str, planned: Planned
) -> None:
    """Heartbeats count also while no solver step is reported, as when the model is loaded."""
    planned().conditions.start("job-1")
    metadata.clips.start("job-1", 1, "f1", world_size=4)
    hour_earlier = "UPDATE attempts SET started_at = started_at - interval '1 hour' WHERE job_id = 'job-1'"
    with psycopg.connect(postgres_url) as connection:
        connection.execute(hour_earlier)
        connection.execute("UPDATE clips SET updated_at = now() - interval '2 hours' WHERE job_id = 'job-1'")
    metadata.attempts.heartbeat("job-1", CONDITIONS)
    metadata.attempts.heartbeat("job-1", rendering(1))
    with psycopg.connect(postgres_url) as connection:
        connection.execute(hour_earlier)
    metadata.jobs.fail("job-1", "Killed.")
    encoded, rendered = job(metadata).attempts
    assert [encoded.outcome, rendered.outcome] == ["lost", "lost"]
    assert encoded.gpu_seconds == pytest.approx(3600, abs=60)
    assert rendered.gpu_seconds == pytest.approx(4 * 3600, abs=240)
    assert encoded.finished_at is not None
    assert (encoded.finished_at - encoded.started_at).total_seconds() == pytest.approx(3600, abs=60)


@pytest.mark.parametrize("ended", ["not", "as lost", "as failed", "as interrupted"])
def test_an_attempt_whose_clip_is_reused_has_succeeded(
    metadata: MetadataStore, postgres_url: str, planned: Planned, ended: str
) -> None:
    """If the end of a finished clip was not stored, its attempt ends with the clip once the clip is reused."""
    planned(3).clips.start("job-1", 2, "f2", world_size=2)
    metadata.conditions.start("job-1")
    with psycopg.connect(postgres_url) as connection:
        connection.execute(
            "UPDATE attempts SET started_at = started_at - interval '1 hour', gpu_seconds = 60 WHERE job_id = 'job-1'"
        )
    began, encoding = (a.started_at for a in sorted(job(metadata).attempts, key=lambda a: a.step, reverse=True))
    if ended == "as lost":
        metadata.jobs.fail("job-1", "The run is gone.")
    elif ended != "not":
        metadata.clips.fail("job-1", 2, "Disk.", outcome="failed" if ended == "as failed" else "interrupted")
    with psycopg.connect(postgres_url) as connection:  # nobody knew more than the last sign of life
        connection.execute(
            "UPDATE attempts SET finished_at = started_at + interval '30 s', gpu_seconds = 60 WHERE job_id = 'job-1'"
            " AND outcome <> 'running' AND step = 'render_clip'"
        )
    metadata.clips.succeed("job-1", 2, facts=FACTS, reused=True, made_at=began + timedelta(seconds=100))
    metadata.conditions.reuse("job-1", made_at=encoding + timedelta(seconds=90))
    rendered, encoded = sorted(job(metadata).attempts, key=lambda attempt: attempt.step, reverse=True)
    assert [(a.outcome, a.reason) for a in (rendered, encoded)] == [("succeeded", None)] * 2
    assert rendered.finished_at == began + timedelta(seconds=100 if ended in {"not", "as lost"} else 30)
    assert rendered.gpu_seconds == pytest.approx(200 if ended in {"not", "as lost"} else 60)
    assert encoded.gpu_seconds == pytest.approx(90)
    (spent,) = metadata.costs.spending()
    assert spent.wasted_gpu_seconds == 0


def test_an_attempt_after_the_clip_that_is_reused_is_lost(
    metadata: MetadataStore, postgres_url: str, planned: Planned
) -> None:
    """An attempt that is younger than the reused clip, or of a copied clip, is lost."""
    planned(3)
    for clip_index in range(3):
        metadata.clips.start("job-1", clip_index, "f")
    metadata.conditions.start("job-1")
    with psycopg.connect(postgres_url) as connection:
        connection.execute("UPDATE attempts SET started_at = started_at - interval '1 hour' WHERE job_id = 'job-1'")
        ((began,),) = connection.execute("SELECT min(started_at) FROM attempts").fetchall()
    metadata.clips.succeed("job-1", 0, facts=FACTS, reused=True, made_at=began - timedelta(seconds=1))
    metadata.clips.succeed("job-1", 1, facts=FACTS, reused=True)
    metadata.conditions.reuse("job-1", made_at=None)
    assert [a.outcome for a in job(metadata).attempts] == ["lost", "lost", "running", "lost"]


def test_only_the_latest_attempt_made_the_clip(metadata: MetadataStore, postgres_url: str, planned: Planned) -> None:
    """Reusing a clip changes its latest attempt only; an attempt that succeeded keeps its end."""
    planned().clips.start("job-1", 0, "f0")
    metadata.clips.fail("job-1", 0, "Out of memory.")
    metadata.clips.start("job-1", 0, "f0")
    later = datetime.now(UTC) + timedelta(hours=1)
    metadata.clips.succeed("job-1", 0, facts=FACTS, reused=True, made_at=later)
    before = job(metadata).attempts
    assert [(a.outcome, a.reason) for a in before] == [("failed", "Out of memory."), ("succeeded", None)]
    assert before[1].gpu_seconds == pytest.approx(0, abs=60)
    metadata.clips.succeed("job-1", 0, facts=FACTS, reused=True, made_at=later)
    assert job(metadata).attempts == before


def test_a_clip_that_was_kept_and_stored_later_keeps_the_length_of_its_attempt(
    metadata: MetadataStore, postgres_url: str, planned: Planned
) -> None:
    """Storing a clip that an interrupted attempt rendered leaves the length of that attempt as it is."""
    planned().clips.start("job-1", 0, "f0")
    metadata.clips.fail("job-1", 0, "S3 is away.", outcome="interrupted")
    with psycopg.connect(postgres_url) as connection:
        connection.execute(
            "UPDATE attempts SET started_at = started_at - interval '2 hours', gpu_seconds = 3600,"
            " finished_at = started_at - interval '1 hour' WHERE job_id = 'job-1'"
        )
    metadata.clips.succeed("job-1", 0, facts=FACTS, reused=False)
    (attempt,) = job(metadata).attempts
    assert (attempt.outcome, attempt.gpu_seconds) == ("succeeded", pytest.approx(3600))


def test_a_clip_that_outlives_the_failure_of_its_job_is_no_waste(metadata: MetadataStore, planned: Planned) -> None:
    """Clips of other chains that finish after the job has failed are not wasted."""
    planned().clips.start("job-1", 0, "f0")
    metadata.clips.start("job-1", 1, "f1", world_size=2)
    metadata.clips.fail("job-1", 0, "The picture is black.")
    metadata.jobs.fail("job-1", "render_clip: The picture is black.")
    metadata.clips.succeed("job-1", 1, facts=FACTS, reused=False)
    assert [attempt.outcome for attempt in job(metadata).attempts] == ["failed", "succeeded"]
    (spent,) = metadata.costs.spending()
    assert spent.used_gpu_seconds > 0


def test_heartbeats_after_the_failure_of_the_job_are_counted(
    metadata: MetadataStore, postgres_url: str, planned: Planned
) -> None:
    """GPU-seconds of a lost attempt grow while its process lives; those of a reported end and of others do not."""
    planned()
    for clip_index in (0, 0, 1):
        metadata.clips.start("job-1", clip_index, f"f{clip_index}")
    metadata.clips.fail("job-1", 1, "The picture is black.")
    metadata.jobs.fail("job-1", "render_clip: The picture is black.")
    with psycopg.connect(postgres_url) as connection:
        connection.execute("UPDATE attempts SET started_at = now() - interval '1 hour' WHERE job_id = 'job-1'")
    for clip_index in (0, 1):
        metadata.attempts.heartbeat("job-1", rendering(clip_index))
    found = sorted(job(metadata).attempts, key=lambda attempt: attempt.id)
    assert [attempt.outcome for attempt in found] == ["lost", "lost", "failed"]
    assert [attempt.gpu_seconds for attempt in found] == pytest.approx([0, 3600, 0], abs=60)
    assert found[1].finished_at is not None
    assert (found[1].finished_at - found[1].started_at).total_seconds() == found[1].gpu_seconds


def test_a_late_end_of_an_attempt_leaves_the_next_one_running(
    metadata: MetadataStore, postgres_url: str, planned: Planned
) -> None:
    """A process that was silent reports for its own attempt: heartbeat, failure and success of attempt 1 of 2."""
    planned()
    assert [metadata.clips.start("job-1", 0, "f0"), metadata.conditions.start("job-1")] == [1, 1]
    assert [metadata.clips.start("job-1", 0, "f0"), metadata.conditions.start("job-1")] == [2, 2]
    with psycopg.connect(postgres_url) as connection:
        connection.execute("UPDATE attempts SET started_at = now() - interval '1 hour' WHERE job_id = 'job-1'")
    metadata.attempts.heartbeat("job-1", rendering(0, 1))
    metadata.clips.fail("job-1", 0, "S3 is away.", number=1)
    metadata.conditions.end("job-1", outcome="failed", reason="S3 is away.", number=1)
    assert job(metadata).clips[0].status == "rendering"
    found = sorted(job(metadata).attempts, key=lambda attempt: attempt.id)
    assert [attempt.outcome for attempt in found] == ["lost", "lost", "running", "running"]
    assert [attempt.gpu_seconds for attempt in found] == pytest.approx([3600, 0, None, None], abs=60)
    assert not metadata.attempts.is_alive("job-1", rendering(0), within_seconds=600)

    metadata.clips.succeed("job-1", 0, facts=FACTS, reused=False, number=1)
    metadata.conditions.end("job-1", outcome="succeeded", number=1)
    assert job(metadata).clips[0].status == "succeeded"
    found = sorted(job(metadata).attempts, key=lambda attempt: attempt.id)
    assert [attempt.outcome for attempt in found] == ["succeeded", "succeeded", "running", "running"]
    metadata.clips.end_take("job-1", 0, reused=False, number=2)
    metadata.clips.fail("job-1", 0, "Out of memory.", number=2)
    assert job(metadata).clips[0].status == "failed"


def test_a_clip_that_is_rendered_ends_its_attempt_now(
    metadata: MetadataStore, postgres_url: str, planned: Planned
) -> None:
    """A rendered clip ends its attempt now, even if an earlier copy of the clip has another time."""
    planned().clips.start("job-1", 0, "f0", world_size=2)
    with psycopg.connect(postgres_url) as connection:
        connection.execute("UPDATE attempts SET started_at = started_at - interval '1 hour' WHERE job_id = 'job-1'")
    began = job(metadata).attempts[0].started_at
    metadata.clips.succeed("job-1", 0, facts=FACTS, reused=False, made_at=began + timedelta(seconds=100))
    (attempt,) = job(metadata).attempts
    assert (attempt.outcome, attempt.gpu_seconds) == ("succeeded", pytest.approx(7200, abs=60))


def test_an_attempt_is_alive_as_long_as_it_gives_signs_of_life(
    metadata: MetadataStore, postgres_url: str, planned: Planned
) -> None:
    """An attempt is alive within a time after its start or its last heartbeat, until it ends."""
    planned(3).clips.start("job-1", 1, "f1", world_size=2)
    assert metadata.attempts.is_alive("job-1", rendering(1), within_seconds=600)
    assert not metadata.attempts.is_alive("job-1", rendering(2), within_seconds=600)
    assert not metadata.attempts.is_alive("job-1", CONDITIONS, within_seconds=600)
    with psycopg.connect(postgres_url) as connection:
        connection.execute("UPDATE attempts SET started_at = now() - interval '1 hour' WHERE job_id = 'job-1'")
    assert not metadata.attempts.is_alive("job-1", rendering(1), within_seconds=600)
    assert metadata.attempts.is_alive("job-1", rendering(1), within_seconds=7200)
    metadata.attempts.heartbeat("job-1", rendering(1))
    assert metadata.attempts.is_alive("job-1", rendering(1), within_seconds=600)
    metadata.clips.fail("job-1", 1, "Why.")
    assert not metadata.attempts.is_alive("job-1", rendering(1), within_seconds=7200)
