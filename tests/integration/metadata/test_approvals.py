"""Check approvals in the database: the scope of a decision, and the questions that it leaves alone."""

from concurrent.futures import ThreadPoolExecutor, wait
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from s2v_tasks.metadata.sql import locked_job
from s2v_tasks.metadata.store import MetadataStore
from s2v_tasks.metadata.tables import Approval
from s2v_tasks.schemas.approval import ApprovalStatus, Rejection


@pytest.fixture
def store(metadata: MetadataStore) -> MetadataStore:
    """A store with two running jobs."""
    for job_id in ("a", "b"):
        metadata.jobs.enqueue(job_id, {})
        metadata.jobs.start(job_id)
    return metadata


def ask(
    store: MetadataStore, clip: int | None = 0, *, job: str = "a", of: str = "f", run: str | None = "r1"
) -> Approval:
    return store.approvals.request(job, clip, of, run_id=run, seconds=90.0)


def rows(engine: sa.Engine) -> list[Any]:
    with engine.connect() as connection:
        return list(connection.execute(sa.select(Approval.__table__).order_by(Approval.id)))


def statuses(engine: sa.Engine) -> list[tuple[str, str]]:
    return [(row.job_id, row.status) for row in rows(engine)]


def events(store: MetadataStore, job_id: str = "a") -> list[Any]:
    job = store.jobs.get(job_id)
    assert job is not None
    return [event for event in job.events if event.event.startswith("approval_")]


def test_one_question_of_a_job_waits_at_a_time(store: MetadataStore, engine: sa.Engine) -> None:
    """A question has its own time limit; a new question withdraws the earlier one of the job and of no other job."""
    ask(store, job="b")
    first, second = ask(store), ask(store, 1)
    assert (first.status, second.status) == ("waiting", "waiting")
    assert statuses(engine) == [("b", "waiting"), ("a", "withdrawn"), ("a", "waiting")]
    of_b, withdrawn, waiting = rows(engine)
    assert of_b.expires_at - of_b.requested_at == timedelta(seconds=90)
    assert withdrawn.decided_at >= withdrawn.requested_at
    assert (of_b.decided_at, waiting.decided_at) == (None, None)
    asked = events(store)
    assert [(event.event, event.clip_index) for event in asked] == [
        ("approval_requested", 0),
        ("approval_requested", 1),
    ]
    assert asked[1].detail == {"expires_at": second.expires_at.isoformat()}


def test_an_approval_holds_for_its_bytes_in_their_place(store: MetadataStore, engine: sa.Engine) -> None:
    """An approval holds in every start for one job, clip and checksum; anything else is asked about again."""
    store.approvals.decide(ask(store), ApprovalStatus.APPROVED, user="edith")
    again = ask(store, run="r2")
    assert (again.status, again.decided_by, len(rows(engine))) == ("approved", "edith", 1)
    assert store.approvals.find("a", 0, "f", None) == again
    for place in (("b", 0, "f"), ("a", 1, "f"), ("a", None, "f"), ("a", 0, "g")):
        assert store.approvals.find(*place, "r1") is None
    store.approvals.decide(ask(store, None, of="v"), ApprovalStatus.APPROVED)
    found = store.approvals.find("a", None, "v", "r9")
    assert found is not None
    assert found.clip_index is None
    assert store.approvals.find("a", 0, "v", "r9") is None


@pytest.mark.parametrize(("run", "other"), [("r1", "r2"), ("r1", None), (None, "r1")])
def test_a_rejection_holds_for_its_own_start(store: MetadataStore, run: str | None, other: str | None) -> None:
    """A rejection holds for its run only; a later start, also one without a run, asks again."""
    store.approvals.decide(ask(store, run=run), ApprovalStatus.REJECTED, rejection=Rejection(note="No."))
    found = store.approvals.find("a", 0, "f", run)
    assert found is not None
    assert found.status == "rejected"
    assert store.approvals.find("a", 0, "f", other) is None
    second = ask(store, run=other)
    assert second.status == "waiting"
    store.approvals.decide(second, ApprovalStatus.APPROVED)
    for start in (run, other):
        found = store.approvals.find("a", 0, "f", start)
        assert found is not None
        assert found.status == "approved"  # the latest answer


@pytest.mark.parametrize("status", [ApprovalStatus.EXPIRED, ApprovalStatus.WITHDRAWN, ApprovalStatus.WAITING])
def test_an_unanswered_question_is_no_decision(store: MetadataStore, engine: sa.Engine, status: ApprovalStatus) -> None:
    """An expired, withdrawn or waiting question gives no decision."""
    ask(store)
    with engine.begin() as connection:
        connection.execute(sa.update(Approval).values(status=status))
    assert store.approvals.find("a", 0, "f", "r1") is None


@pytest.mark.parametrize(
    ("status", "event"),
    [
        (ApprovalStatus.APPROVED, "approval_given"),
        (ApprovalStatus.REJECTED, "approval_refused"),
        (ApprovalStatus.EXPIRED, "approval_expired"),
    ],
)
def test_the_first_answer_counts(store: MetadataStore, engine: sa.Engine, status: ApprovalStatus, event: str) -> None:
    """The first answer is stored with person, time and event; a second one changes nothing, also of other jobs."""
    waiting, other = ask(store, 3), ask(store, 3, job="b")
    rejection = Rejection(note="She blinks.", base_seed=9) if status == ApprovalStatus.REJECTED else None
    store.approvals.decide(waiting, status, user="edith", rejection=rejection, next_job_id="a-2")
    store.approvals.decide(waiting, ApprovalStatus.APPROVED, user="zoe")
    mine, theirs = rows(engine)
    assert (mine.status, mine.decided_by, mine.next_job_id) == (status, "edith", "a-2")
    assert mine.rejection == (None if rejection is None else {"note": "She blinks.", "base_seed": 9})
    assert mine.decided_at >= mine.requested_at
    assert (theirs.id, theirs.status, theirs.decided_at) == (other.id, "waiting", None)
    _, last = events(store)
    note = {} if rejection is None else {"note": "She blinks."}
    assert (last.event, last.clip_index, last.detail) == (event, 3, {"user": "edith", "next_job_id": "a-2"} | note)
    assert [found.event for found in events(store, "b")] == ["approval_requested"]


def test_the_end_of_a_job_leaves_answers_and_other_jobs_alone(store: MetadataStore, engine: sa.Engine) -> None:
    """The end of a job withdraws its waiting question only."""
    store.approvals.decide(ask(store), ApprovalStatus.APPROVED)
    ask(store, 1)
    ask(store, job="b")
    store.jobs.cancel("a")
    assert statuses(engine) == [("a", "approved"), ("a", "withdrawn"), ("b", "waiting")]


def test_processes_that_ask_at_once_leave_one_question(store: MetadataStore, engine: sa.Engine) -> None:
    """Of two concurrent questions about a job, the earlier one is withdrawn."""
    with ThreadPoolExecutor(2) as pool:
        with locked_job(engine, "a"):
            asked = [pool.submit(ask, store, clip) for clip in (0, 1)]
            look = sa.text(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
            )
            while not any(found.done() for found in asked):
                with engine.connect() as other:
                    if other.execute(look).scalar_one() == 2:
                        break
        wait(asked)
    assert statuses(engine) == [("a", "withdrawn"), ("a", "waiting")]
