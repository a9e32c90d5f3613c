"""Dropped folders: one claim each, with its job, and the way of its files."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from s2v_tasks.metadata.drops import DropLedger, DropRecord
from s2v_tasks.metadata.queue import JobQueue, WaitingJob
from s2v_tasks.metadata.repository import Ledger
from s2v_tasks.metadata.tables import Drop

FILES = {"a.png": {"etag": "1", "size_bytes": 5, "target": "a.png"}}


def drop(name: str, **values: object) -> DropRecord:
    record = DropRecord(f"{name}@e", f"s3://b/in/{name}", f"s3://b/ok/{name}", "e", FILES, "claimed", job_id=name)
    return replace(record, **values)  # type: ignore[arg-type]


@pytest.fixture
def drops(engine: sa.Engine) -> DropLedger:
    """An accepted folder of yesterday, and one that was refused before it."""
    drops = DropLedger(engine)
    assert drops.claim(drop("c"), WaitingJob("c", {"priority": "high"}))
    assert drops.claim(drop("b", status="refused", job_id=None, error={"error": "no \0 face"}))
    with engine.begin() as connection:
        for days, name in ((1, "c@e"), (2, "b@e")):
            at = datetime.now(UTC) - timedelta(days=days)
            connection.execute(sa.update(Drop).where(Drop.drop_id == name).values(created_at=at))
    return drops


def test_files_on_their_way_are_unfinished(drops: DropLedger, engine: sa.Engine) -> None:
    """The oldest first; a job starts when its files have arrived."""
    assert drops.claim(drop("a"), WaitingJob("a", {}))
    refused = drop("b", status="refused", job_id=None, error={"error": "no \ufffd face"})
    assert drops.unfinished() == [refused, drop("c"), drop("a")]
    assert JobQueue(engine).next(max_running=9) == []
    drops.arrived("b@e")
    drops.rejected("c@e")
    assert len(drops.unfinished()) == 3
    drops.arrived("c@e")
    assert [turn.job_id for turn in JobQueue(engine).next(max_running=9)] == ["c"]
    drops.rejected("b@e")
    assert drops.unfinished() == [drop("a")]
    with engine.connect() as connection:
        states = connection.execute(sa.select(Drop.drop_id, Drop.status).order_by(Drop.drop_id)).all()
    assert [tuple(state) for state in states] == [("a@e", "claimed"), ("b@e", "rejected"), ("c@e", "accepted")]


@pytest.mark.parametrize(
    "other",
    [
        drop("c", target_uri="s3://b/ok/other", job_id="other"),
        drop("other", target_uri="s3://b/ok/c"),
        drop("other", job_id="c"),
    ],
)
def test_a_claim_that_is_half_anothers_changes_nothing(drops: DropLedger, ledger: Ledger, other: DropRecord) -> None:
    """The folder, its target or its job is taken: neither drop nor job is on record."""
    assert not drops.claim(other, WaitingJob(str(other.job_id), {}))
    assert len(drops.unfinished()) == 2
    assert [job.job_id for job in ledger.jobs()] == ["c"]
    assert (drops.job_exists("c"), drops.job_exists("other")) == (True, False)


def test_a_job_that_came_otherwise_is_not_taken(drops: DropLedger, ledger: Ledger) -> None:
    """Its name is another's, too."""
    ledger.job_queued("mine", {"prompt": "A."})
    assert not drops.claim(drop("new", job_id="mine"), WaitingJob("mine", {"prompt": "B."}))
    record = ledger.job("mine")
    assert record is not None
    assert (record.request, record.source) == ({"prompt": "A."}, None)


def test_what_was_dropped_before_is_known(drops: DropLedger) -> None:
    """The same files in the same folder, how often and with which job; and where folders went."""
    assert drops.claim(drop("c", drop_id="c@e#2", target_uri="s3://b/ok/c-2", status="refused", job_id=None))
    assert drops.earlier("s3://b/in/c", "e") == (2, "c")
    assert drops.earlier("s3://b/in/b", "e") == (1, None)
    assert drops.earlier("s3://b/in/c", "f") == drops.earlier("s3://b/in/d", "e") == (0, None)
    assert (drops.is_target("s3://b/ok/c-2"), drops.is_target("s3://b/in/c")) == (True, False)
