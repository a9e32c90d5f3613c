"""Check that processes that write at the same time wait for each other and lose nothing."""

import ast
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from operator import attrgetter
from pathlib import Path
from threading import Barrier

import psycopg
import pytest
import sqlalchemy as sa

from s2v_tasks.metadata import sql
from s2v_tasks.metadata.attempts import rendering
from s2v_tasks.metadata.ingestion import NewRow
from s2v_tasks.metadata.ingestion_tables import Drop
from s2v_tasks.metadata.queue import NewJob
from s2v_tasks.metadata.session import transaction
from s2v_tasks.metadata.sql import locked_job, update_job
from s2v_tasks.metadata.store import MetadataStore
from s2v_tasks.metadata.tables import Approval
from s2v_tasks.schemas.approval import ApprovalStatus
from s2v_tasks.schemas.job import JobStatus
from s2v_tasks.schemas.manifest import ClipFacts, Manifest, Producer
from s2v_tasks.schemas.plan import InheritedClip, Plan
from s2v_tasks.schemas.quality import TakeRecord

FACTS = ClipFacts(start_frame=0, end_frame=16)

Planned = Callable[..., MetadataStore]
MakePlan = Callable[..., Plan]
NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
INHERITED = InheritedClip(clip_index=1, fingerprint="f", source_job_id="job-0", source_manifest_key="m.json")
MEASURED = TakeRecord(clip_index=0, fingerprint="f")
ASKED = Approval(
    id=1, job_id="job-1", clip_index=0, fingerprint="f", dag_run_id=None, status="waiting", decided_by=None,
    rejection=None, next_job_id=None, expires_at=NOW, decided_at=None,
)  # fmt: skip


def manifest() -> Manifest:
    return Manifest(
        step="plan_clips", job_id="job-1", fingerprint="f", producer=Producer(package_version="1"), inputs={},
        outputs={}, started_at=NOW, finished_at=NOW,
    )  # fmt: skip


def waits(url: str, writer: "Future[object]") -> bool:
    """Return True if a writer waits for a lock; False if it has finished without waiting."""
    look = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    with psycopg.connect(url, autocommit=True) as connection:
        while not writer.done():
            if connection.execute(look).fetchone() != (0,):
                return True
    return False


WRITERS: dict[str, Callable[[Callable[..., object], Plan], object]] = {
    "jobs.start": lambda call, _: call("job-1"),
    "jobs.record_plan": lambda call, plan: call("job-1", plan),
    "jobs.fail": lambda call, _: call("job-1", "Why."),
    "jobs.refuse": lambda call, _: call("job-1", "Why."),
    "jobs.close_lost": lambda call, _: call("job-1", "run-1"),
    "jobs.request_cancel": lambda call, _: call("job-1"),
    "jobs.cancel": lambda call, _: call("job-1"),
    "jobs.succeed": lambda call, _: call("job-1", "s3://o/v.mp4", "00"),
    "clips.start": lambda call, _: call("job-1", 0, "f"),
    "clips.succeed": lambda call, _: call("job-1", 0, facts=FACTS, reused=False),
    "clips.end_take": lambda call, _: call("job-1", 0, reused=False),
    "clips.record_quality": lambda call, _: call("job-1", MEASURED),
    "clips.inherit": lambda call, _: call("job-1", INHERITED, facts=FACTS),
    "clips.fail": lambda call, _: call("job-1", 0, "Why."),
    "conditions.start": lambda call, _: call("job-1"),
    "conditions.end": lambda call, _: call("job-1", outcome="failed"),
    "conditions.reuse": lambda call, _: call("job-1", made_at=None),
    "artifacts.record": lambda call, _: call(manifest()),
    "approvals.request": lambda call, _: call("job-1", 0, "f", run_id=None, seconds=60.0),
    "approvals.decide": lambda call, _: call(ASKED, ApprovalStatus.APPROVED),
}


def locking_methods(metadata: MetadataStore) -> set[str]:
    """Return the methods of the store that call `locked_job`, by the sources of the package."""
    parts = {type(part).__name__: name for name, part in vars(metadata).items()}
    found = set()
    for path in Path(sql.__file__).parent.glob("*.py"):
        for owner in ast.parse(path.read_text()).body:
            for function in ast.walk(owner):
                if isinstance(function, ast.FunctionDef) and _calls_locked_job(function):
                    assert isinstance(owner, ast.ClassDef), f"{function.name} is no method"
                    found.add(f"{parts[owner.name]}.{function.name}")
    return found


def _calls_locked_job(function: ast.FunctionDef) -> bool:
    calls = (node.func for node in ast.walk(function) if isinstance(node, ast.Call))
    return any(isinstance(call, ast.Name) and call.id == "locked_job" for call in calls)


def test_every_writer_is_tested(metadata: MetadataStore) -> None:
    """Each method that locks a job is in the table above; three others lock it by their update of its row.

    A foreign key makes most writers wait even without a lock of their own, but only after they have read.
    """
    assert locking_methods(metadata) == set(WRITERS) - {"jobs.fail", "jobs.close_lost", "jobs.request_cancel"}


@pytest.mark.parametrize("name", WRITERS)
def test_writers_of_a_job_take_turns(
    name: str, engine: sa.Engine, postgres_url: str, planned: Planned, plan: MakePlan
) -> None:
    """While one process writes, every other call about the same job waits until it has committed; other jobs do not."""
    metadata = planned(3)
    metadata.jobs.enqueue("job-2", {})
    with ThreadPoolExecutor(1) as pool:
        with locked_job(engine, "job-1"):
            metadata.jobs.start("job-2")
            writer = pool.submit(WRITERS[name], attrgetter(name)(metadata), plan(3))
            assert waits(postgres_url, writer)
        writer.result()


def test_a_cancel_returns_the_status_that_another_process_was_writing(
    engine: sa.Engine, postgres_url: str, metadata: MetadataStore, planned: Planned
) -> None:
    """A job that ends while its cancel is requested is returned as ended, and gets no request."""
    planned(3)
    with ThreadPoolExecutor(1) as pool:
        with transaction(engine) as connection:
            update_job(connection, "job-1", {"status": JobStatus.SUCCEEDED})
            cancel = pool.submit(metadata.jobs.request_cancel, "job-1")
            assert waits(postgres_url, cancel)
        assert cancel.result() == "succeeded"
    assert not metadata.jobs.is_cancel_requested("job-1")


def test_attempts_that_begin_at_once_have_different_numbers(metadata: MetadataStore, planned: Planned) -> None:
    """Each process that starts the same clip gets an attempt of its own, and the last attempt is the running one."""
    planned(3)
    together = Barrier(4)

    def begin(_: int) -> None:
        together.wait()
        metadata.clips.start("job-1", 1, "f")
        metadata.attempts.heartbeat("job-1", rendering(1))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(begin, range(4)))
    job = metadata.jobs.get("job-1")
    assert job is not None
    assert sorted(attempt.attempt for attempt in job.attempts) == [1, 2, 3, 4]
    assert [attempt.outcome for attempt in sorted(job.attempts, key=lambda a: a.attempt)] == ["lost"] * 3 + ["running"]
    assert job.clips[1].attempts == 4


def test_a_folder_that_several_sweeps_claim_is_one_drop(engine: sa.Engine) -> None:
    """One sweep gets the folder and its job; the others change nothing, although each proposes another job id."""
    drops, together = MetadataStore(engine).drops, Barrier(4)

    def claim(number: int) -> bool:
        together.wait()
        drop = Drop(
            drop_id="d",
            folder_uri="s3://b/incoming/a",
            target_uri="s3://b/accepted/a",
            etag="e",
            files={},
            status="claimed",
            job_id=f"job-{number}",
            error=None,
        )
        return drops.claim(drop, NewJob(f"job-{number}", {}))

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(claim, range(4))) == [False, False, False, True]
    [drop] = drops.unfinished()
    assert [job.job_id for job in MetadataStore(engine).jobs.recent()] == [drop.job_id]


def test_a_manifest_that_is_registered_at_once_queues_each_job_once(engine: sa.Engine) -> None:
    """Concurrent registrations queue each job once, with one event."""
    rows = [NewRow(number, None, NewJob(f"job-{number}", {})) for number in (2, 3, 1)]
    together = Barrier(3)

    def register(_: int) -> int:
        together.wait()
        return MetadataStore(engine).batches.register("batch", "s3://b/m.jsonl", "etag", rows)

    with ThreadPoolExecutor(3) as pool:
        assert sorted(pool.map(register, range(3))) == [0, 0, 3]
    metadata = MetadataStore(engine)
    for number in (1, 2, 3):
        job = metadata.jobs.get(f"job-{number}")
        assert job is not None
        assert [event.event for event in job.events] == ["job_queued"]


def test_a_job_that_several_processes_give_up_fails_once(metadata: MetadataStore, planned: Planned) -> None:
    """One process fails the job; the others find that it has ended."""
    planned(3)
    metadata.jobs.enqueue("job-1", {"prompt": "A person speaks."}, dag_run_id="run-1")
    together = Barrier(4)

    def give_up(_: int) -> bool:
        together.wait()
        return metadata.jobs.close_lost("job-1", "run-1")

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(give_up, range(4))) == [False, False, False, True]
    job = metadata.jobs.get("job-1")
    assert job is not None
    assert [event.event for event in job.events].count("job_failed") == 1


def test_jobs_that_are_started_twice_at_once_have_one_run(engine: sa.Engine) -> None:
    """Both callers get the same run id, which Airflow accepts once."""
    queue, together = MetadataStore(engine).queue, Barrier(2)
    MetadataStore(engine).batches.register("batch", "s3://b/m.jsonl", "e", [NewRow(1, None, NewJob("job-1", {}))])

    def start(_: int) -> list[str]:
        together.wait()
        turns = queue.next(max_running=9)
        together.wait()
        queue.mark_started([turn.job_id for turn in turns])
        return [turn.run_id for turn in turns]

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(start, range(2))) == [["job-1"], ["job-1"]]
    job = MetadataStore(engine).jobs.get("job-1")
    assert job is not None
    assert job.dag_run_id == "job-1"
