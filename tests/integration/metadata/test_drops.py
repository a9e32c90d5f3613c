"""Check dropped folders: one claim each, with its job and the state of its files."""

from dataclasses import asdict
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from s2v_tasks.metadata.ingestion import DropRepository
from s2v_tasks.metadata.ingestion_tables import Drop
from s2v_tasks.metadata.queue import NewJob
from s2v_tasks.metadata.store import MetadataStore

FILES = {"a.png": {"etag": "1", "size_bytes": 5, "target": "a.png"}}


def drop(name: str, **values: object) -> Drop:
    fields = {
        "drop_id": f"{name}@e",
        "folder_uri": f"s3://b/in/{name}",
        "target_uri": f"s3://b/ok/{name}",
        "etag": "e",
        "files": FILES,
        "status": "claimed",
        "job_id": name,
        "error": None,
    }
    return Drop(**fields | values)


def plain(claim: Drop) -> dict[str, object]:
    """Return a claim without the times that the database sets."""
    return {name: value for name, value in asdict(claim).items() if name not in {"created_at", "updated_at"}}


@pytest.fixture
def drops(engine: sa.Engine) -> DropRepository:
    """An accepted folder of yesterday, and one that was refused before it."""
    drops = MetadataStore(engine).drops
    assert drops.claim(drop("c"), NewJob("c", {"priority": "high"}))
    assert drops.claim(drop("b", status="refused", job_id=None, error={"error": "no \0 face"}))
    with engine.begin() as connection:
        for days, name in ((1, "c@e"), (2, "b@e")):
            at = datetime.now(UTC) - timedelta(days=days)
            connection.execute(sa.update(Drop).where(Drop.drop_id == name).values(created_at=at))
    return drops


def test_claims_with_unmoved_files_are_unfinished(drops: DropRepository, engine: sa.Engine) -> None:
    """Claims whose files are not moved yet are listed, the oldest first; their jobs wait for the files."""
    assert drops.claim(drop("a"), NewJob("a", {}))
    refused = drop("b", status="refused", job_id=None, error={"error": "no \ufffd face"})
    assert [plain(claim) for claim in drops.unfinished()] == [plain(refused), plain(drop("c")), plain(drop("a"))]
    assert MetadataStore(engine).queue.next(max_running=9) == []
    drops.mark_accepted("b@e")
    drops.mark_rejected("c@e")
    assert len(drops.unfinished()) == 3
    drops.mark_accepted("c@e")
    assert [turn.job_id for turn in MetadataStore(engine).queue.next(max_running=9)] == ["c"]
    drops.mark_rejected("b@e")
    assert [claim.drop_id for claim in drops.unfinished()] == ["a@e"]
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
def test_a_claim_that_conflicts_changes_nothing(drops: DropRepository, metadata: MetadataStore, other: Drop) -> None:
    """If the folder, its target or its job is taken, neither drop nor job is stored."""
    assert not drops.claim(other, NewJob(str(other.job_id), {}))
    assert len(drops.unfinished()) == 2
    assert [job.job_id for job in metadata.jobs.recent()] == ["c"]
    assert (drops.job_exists("c"), drops.job_exists("other")) == (True, False)


def test_a_job_that_came_otherwise_is_not_taken(drops: DropRepository, metadata: MetadataStore) -> None:
    """A claim with the id of a job that was submitted otherwise is refused."""
    metadata.jobs.enqueue("mine", {"prompt": "A."})
    assert not drops.claim(drop("new", job_id="mine"), NewJob("mine", {"prompt": "B."}))
    record = metadata.jobs.get("mine")
    assert record is not None
    assert (record.request, record.source) == ({"prompt": "A."}, None)


def test_what_was_dropped_before_is_known(drops: DropRepository) -> None:
    """Earlier drops of the same files in the same folder are returned with their job and target."""
    assert drops.claim(drop("c", drop_id="c@e#2", target_uri="s3://b/ok/c-2", status="refused", job_id=None))
    assert drops.earlier("s3://b/in/c", "e") == (2, "c")
    assert drops.earlier("s3://b/in/b", "e") == (1, None)
    assert drops.earlier("s3://b/in/c", "f") == drops.earlier("s3://b/in/d", "e") == (0, None)
    assert (drops.is_target("s3://b/ok/c-2"), drops.is_target("s3://b/in/c")) == (True, False)
