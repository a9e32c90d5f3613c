"""Check the cost of rendering, computed from attempts and the prices of jobs."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from s2v_tasks.metadata.store import MetadataStore
from s2v_tasks.metadata.tables import Attempt, Job

DAY = datetime(2026, 11, 20, 12, tzinfo=UTC)


@pytest.fixture
def metadata(engine: sa.Engine) -> MetadataStore:
    """Two jobs at 3.60 an hour and one at 36 in another currency, with attempts of all outcomes."""
    metadata = MetadataStore(engine)
    jobs: list[tuple[str, dict[str, Any]]] = [
        ("a", {"labels": {"team": "news", "show": "late"}, "preset": "quick", "price": (3.6, "USD")}),
        ("b", {"labels": {"team": "news"}, "preset": "high", "price": (3.6, "USD")}),
        ("c", {"preset": "high", "price": (36.0, "EUR")}),
    ]
    attempts = [
        ("a", 0, 1, "failed", 10.0, DAY),
        ("a", 0, 2, "interrupted", 20.0, DAY),
        ("a", 0, 3, "succeeded", 30.0, DAY),
        ("b", 0, 1, "lost", 40.0, DAY + timedelta(days=1)),
        ("c", 0, 1, "succeeded", 100.0, DAY + timedelta(days=1)),
    ]
    with engine.begin() as connection:
        for job_id, facts in jobs:
            price, currency = facts.pop("price")
            values = {"status": "running", "cost_per_gpu_hour": price, "currency": currency} | facts
            connection.execute(sa.insert(Job).values(job_id=job_id, **values))
        for job_id, clip_index, attempt, outcome, seconds, at in attempts:
            row = {"job_id": job_id, "clip_index": clip_index, "attempt": attempt, "outcome": outcome}
            row |= {"gpu_seconds": seconds, "started_at": at, "finished_at": at, "world_size": 1}
            connection.execute(sa.insert(Attempt).values(**row))
    return metadata


def lines(metadata: MetadataStore, by: Any, **which: Any) -> list[tuple[Any, ...]]:
    return [
        (line.name, line.currency, line.jobs, line.used_gpu_seconds, line.wasted_gpu_seconds, round(line.cost or 0, 4))
        for line in metadata.costs.spending(by, **which)
    ]


def test_wasted_attempts_are_counted_apart(metadata: MetadataStore) -> None:
    """Failed and lost attempts are wasted, interrupted ones are not; currencies are not added up."""
    assert lines(metadata, "all") == [("all", "EUR", 1, 100.0, 0.0, 1.0), ("all", "USD", 2, 50.0, 50.0, 0.1)]
    assert [line.wasted_cost for line in metadata.costs.spending("all")] == [0, pytest.approx(0.05)]


def test_conditions_are_counted_apart_from_clips(metadata: MetadataStore) -> None:
    """Seconds of conditions are stated separately from those of clips; a failed attempt is wasted, too."""
    metadata.conditions.start("c")
    metadata.conditions.end("c", outcome="failed", reason="Out of memory.")
    metadata.conditions.start("c")
    metadata.conditions.end("c", outcome="succeeded")
    job = metadata.jobs.get("c")
    assert job is not None
    assert [(a.step, a.clip_index, a.attempt, a.outcome) for a in job.attempts] == [
        ("render_clip", 0, 1, "succeeded"),
        ("encode_conditions", None, 1, "failed"),
        ("encode_conditions", None, 2, "succeeded"),
    ]


def test_seconds_of_conditions_are_part_of_those_used(metadata: MetadataStore, engine: sa.Engine) -> None:
    """Both count towards the cost; only useful attempts count as spent on conditions."""
    with engine.begin() as connection:
        for attempt, (outcome, seconds) in enumerate([("failed", 5.0), ("succeeded", 7.0)], 1):
            row = {"job_id": "c", "step": "encode_conditions", "attempt": attempt, "outcome": outcome}
            connection.execute(sa.insert(Attempt).values(**row, gpu_seconds=seconds, world_size=1))
    (line,) = metadata.costs.spending("job", job_id="c")
    assert (line.used_gpu_seconds, line.conditions_gpu_seconds, line.wasted_gpu_seconds) == (107.0, 7.0, 5.0)
    assert line.cost == pytest.approx(1.12)


def test_a_job_counts_under_each_of_its_labels(metadata: MetadataStore) -> None:
    """A job counts once per label; jobs without labels have a row of their own."""
    assert lines(metadata, "label") == [
        ("(none)", "EUR", 1, 100.0, 0.0, 1.0),
        ("team=news", "USD", 2, 50.0, 50.0, 0.1),
        ("show=late", "USD", 1, 50.0, 10.0, 0.06),
    ]


def test_costs_are_grouped_by_day_preset_and_job(metadata: MetadataStore) -> None:
    """The day is the UTC day on which an attempt started; `since` leaves out earlier attempts."""
    assert [(name, used) for name, _, _, used, *_ in lines(metadata, "day")] == [
        ("2026-11-20", 50.0),
        ("2026-11-21", 100.0),
        ("2026-11-21", 0.0),
    ]
    assert [name for name, *_ in lines(metadata, "preset")] == ["high", "quick", "high"]
    assert lines(metadata, "job", job_id="a") == [("a", "USD", 1, 50.0, 10.0, 0.06)]
    day = timedelta(days=1)
    for since in (DAY + timedelta(hours=1), DAY + day):
        assert [name for name, *_ in lines(metadata, "job", since=since)] == ["c", "b"]
    assert lines(metadata, "job", since=DAY + day + timedelta(microseconds=1)) == []


def test_an_attempt_that_runs_costs_already(metadata: MetadataStore, engine: sa.Engine) -> None:
    """A running attempt counts from its start until now, on all its GPUs."""
    with engine.begin() as connection:
        began = sa.func.now() - sa.text("interval '10 seconds'")
        row = {"job_id": "c", "clip_index": 1, "attempt": 1, "started_at": began, "world_size": 4}
        connection.execute(sa.insert(Attempt).values(**row))
    (line,) = metadata.costs.spending("job", job_id="c")
    assert 140 <= line.used_gpu_seconds < 300
