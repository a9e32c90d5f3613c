"""Check the queue of notifications: written with the event, sent in order, by one sender at a time."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import sqlalchemy as sa

from s2v_tasks.metadata.session import create_engine
from s2v_tasks.metadata.store import MetadataStore
from s2v_tasks.metadata.tables import Notification
from s2v_tasks.schemas.manifest import ClipFacts

FACTS = ClipFacts(start_frame=0, end_frame=16)

HOOK = "https://hooks.example.com/x"


def rows(engine: sa.Engine) -> list[Any]:
    with engine.connect() as connection:
        return list(connection.execute(sa.select(Notification.__table__).order_by(Notification.id)))


def age(engine: sa.Engine, by: timedelta) -> None:
    """Move the times of every message into the past."""
    with engine.begin() as connection:
        values = {"created_at": Notification.created_at - by, "next_attempt_at": Notification.next_attempt_at - by}
        connection.execute(sa.update(Notification).values(**values))


def test_start_and_end_of_a_job_are_queued_as_notifications(engine: sa.Engine, metadata: MetadataStore) -> None:
    """Start and end are queued for the webhook of the request; finished steps are not."""
    metadata.jobs.enqueue("a", {"webhook_url": HOOK, "labels": {"team": "m"}})
    metadata.jobs.start("a")
    metadata.events.record("a", "step_finished", step="stitch")
    metadata.jobs.fail("a", "no\0 luck")
    started, failed = rows(engine)
    assert (started.event, failed.event, failed.url, failed.status) == ("job_started", "job_failed", HOOK, "pending")
    assert failed.payload["labels"] == {"team": "m"}
    assert failed.payload["detail"] == {"reason": "no\ufffd luck"}
    assert started.payload["at"] == started.created_at.isoformat()


def test_reported_events_and_their_details(engine: sa.Engine, planned: Callable[..., MetadataStore]) -> None:
    """Starts, finished clips and all ends are queued with their details, and no other event."""
    metadata = planned(3, webhook_url=HOOK)
    metadata.clips.start("job-1", 2, "f")
    metadata.clips.fail("job-1", 2, "Out of memory.")
    metadata.clips.succeed("job-1", 2, facts=FACTS, reused=True)
    metadata.jobs.succeed("job-1", "s3://o/v.mp4", "00")
    metadata.jobs.fail("job-1", "Why.")
    metadata.jobs.request_cancel("job-1")
    metadata.jobs.start("job-1")
    metadata.jobs.request_cancel("job-1")
    metadata.jobs.cancel("job-1")
    messages = rows(engine)
    assert [row.event for row in messages] == [
        "job_started", "clip_succeeded", "job_succeeded", "job_failed", "job_started", "job_cancelled"
    ]  # fmt: skip
    assert [row.clip_index for row in messages] == [None, 2, None, None, None, None]
    clip = messages[1]
    assert (clip.job_id, clip.url, clip.status, clip.attempts) == ("job-1", HOOK, "pending", 0)
    assert clip.payload == {
        "schema_version": 1, "event": "clip_succeeded", "at": clip.created_at.isoformat(), "job_id": "job-1",
        "clip_index": 2, "num_clip": 3, "num_frames": 144, "labels": {}, "detail": {"reused": True},
    }  # fmt: skip
    assert messages[2].payload["detail"] == {"video_uri": "s3://o/v.mp4", "sha256": "00"}


def test_a_repeated_try_is_not_reported_again(engine: sa.Engine, metadata: MetadataStore) -> None:
    """A repeated first or last step of a run sends no second message; another start of the job does."""
    request = {"webhook_url": HOOK}
    for run_id in ("a", "a--2"):
        for _ in range(2):
            metadata.jobs.enqueue("a", request, dag_run_id=run_id)
            metadata.jobs.start("a")
        for _ in range(2):
            metadata.jobs.succeed("a", "s3://o/v.mp4", "00")
    assert [row.event for row in rows(engine)] == ["job_started", "job_succeeded"] * 2


def test_an_attempt_that_outlasts_its_lease_changes_no_settled_message(
    engine: sa.Engine, metadata: MetadataStore
) -> None:
    """A message that another sender has delivered stays delivered."""
    metadata.jobs.enqueue("a", {"webhook_url": HOOK})
    metadata.jobs.start("a")
    late = metadata.notifications.claim()
    with engine.begin() as connection:
        connection.execute(sa.update(Notification).values(next_attempt_at=sa.func.now()))
    again = metadata.notifications.claim()
    assert late is not None
    assert again is not None
    metadata.notifications.mark_delivered(again.id)
    metadata.notifications.postpone(late.id, "No answer.")
    assert [row.status for row in rows(engine)] == ["delivered"]


def test_a_start_and_its_end_are_reported_once(engine: sa.Engine, metadata: MetadataStore) -> None:
    """Clips of other chains after a failure are not reported again; after close_job they start the job again."""
    metadata.jobs.enqueue("a", {"webhook_url": HOOK})
    metadata.jobs.start("a")
    metadata.jobs.start("a", by_clip=True)
    metadata.jobs.fail("a", "The first chain broke.")
    metadata.jobs.start("a", by_clip=True)
    metadata.jobs.fail("a", "The second chain broke.")
    metadata.events.record("a", "step_finished", step="close_job")
    assert [row.event for row in rows(engine)] == ["job_started", "job_failed"]
    record = metadata.jobs.get("a")
    assert record is not None
    assert (record.status, record.reason) == ("failed", "The second chain broke.")
    metadata.jobs.start("a", by_clip=True)
    metadata.jobs.fail("a", "Again.")
    assert [row.event for row in rows(engine)][2:] == ["job_started", "job_failed"]


def test_a_finished_clip_is_reported_once_in_each_start(
    engine: sa.Engine, planned: Callable[..., MetadataStore]
) -> None:
    """A repeated step sends no second message; a new rendering and a new start of the job send one."""
    metadata = planned(2, webhook_url=HOOK)
    for reused in (False, True):  # the process was killed after the first record, or its answer was lost
        metadata.clips.succeed("job-1", 0, facts=FACTS, reused=reused)
    metadata.clips.succeed("job-1", 1, facts=FACTS, reused=False)
    metadata.clips.start("job-1", 0, "f")
    metadata.clips.succeed("job-1", 0, facts=FACTS, reused=False)
    metadata.jobs.fail("job-1", "Why.")
    metadata.jobs.start("job-1")
    for _ in range(2):
        metadata.clips.succeed("job-1", 0, facts=FACTS, reused=True)
    messages = [(row.event, row.clip_index) for row in rows(engine)]
    clip, other = ("clip_succeeded", 0), ("clip_succeeded", 1)
    start, end = ("job_started", None), ("job_failed", None)
    assert messages == [start, clip, other, clip, end, start, clip]


def test_a_run_that_is_lost_ends_its_own_start_only(engine: sa.Engine, metadata: MetadataStore) -> None:
    """A job that ended or has another run does not change; a clip may start a lost job again."""
    metadata.jobs.enqueue("a", {"webhook_url": HOOK}, dag_run_id="first")
    metadata.jobs.enqueue("a", {"webhook_url": HOOK}, dag_run_id="second")
    assert not metadata.jobs.close_lost("a", "first")
    assert metadata.jobs.close_lost("a", "second")
    assert not metadata.jobs.close_lost("a", "second")
    metadata.jobs.start("a", by_clip=True)
    assert [row.event for row in rows(engine)] == ["job_failed", "job_started"]


def test_a_late_clip_does_not_revive_a_cancelled_job(metadata: MetadataStore) -> None:
    """A clip that starts while the job is cancelled leaves it cancelled."""
    metadata.jobs.enqueue("a", {})
    metadata.jobs.start("a")
    metadata.jobs.cancel("a")
    metadata.jobs.start("a", by_clip=True)
    record = metadata.jobs.get("a")
    assert record is not None
    assert record.status == "cancelled"


def test_a_job_without_a_webhook_uses_the_configured_one(postgres_url: str) -> None:
    """The webhook of the request has precedence; without both, nothing is queued."""
    for hook, expected in ((None, [HOOK]), ("https://ops.example.com/", ["https://ops.example.com/", HOOK])):
        engine = create_engine(postgres_url)
        metadata = MetadataStore(engine, webhook_url=hook)
        with engine.begin() as connection:
            connection.execute(sa.delete(Notification))
        for job_id, request in (("plain", {}), ("own", {"webhook_url": HOOK})):
            metadata.jobs.enqueue(job_id, request)
            metadata.jobs.fail(job_id, "x")
        assert [row.url for row in rows(engine)] == expected
        engine.dispose()


def test_messages_of_a_job_go_out_in_order(engine: sa.Engine, metadata: MetadataStore) -> None:
    """A waiting message delays the later ones of its job only; a claimed message is not given to another sender."""
    for job_id in ("a", "b"):
        metadata.jobs.enqueue(job_id, {"webhook_url": f"{HOOK}/{job_id}"})
        metadata.jobs.start(job_id)
        metadata.jobs.fail(job_id, "x")
    first = metadata.notifications.claim()
    assert first is not None
    assert (first.job_id, first.event) == ("a", "job_started")
    second = metadata.notifications.claim()
    assert second is not None
    assert (second.job_id, second.event) == ("b", "job_started")
    assert metadata.notifications.claim() is None
    metadata.notifications.postpone(first.id, "away")
    metadata.notifications.mark_delivered(second.id)
    third = metadata.notifications.claim()
    assert third is not None
    assert (third.job_id, third.event) == ("b", "job_failed")
    assert metadata.notifications.claim(job_id="a") is None
    age(engine, timedelta(minutes=1))
    assert metadata.notifications.claim(skip_urls=[f"{HOOK}/a", f"{HOOK}/b"]) is None
    again = metadata.notifications.claim(job_id="a")
    assert again is not None
    assert again.id == first.id


def test_a_sender_that_died_leaves_its_message_to_the_next(engine: sa.Engine, metadata: MetadataStore) -> None:
    """A claim expires after a minute."""
    metadata.jobs.enqueue("a", {"webhook_url": HOOK})
    metadata.jobs.fail("a", "x")
    assert metadata.notifications.claim() is not None
    assert metadata.notifications.claim() is None
    age(engine, timedelta(minutes=2))
    assert metadata.notifications.claim() is not None
    assert rows(engine)[0].attempts == 2


def test_the_delay_grows_and_ends_after_a_day(engine: sa.Engine, metadata: MetadataStore) -> None:
    """Delays grow from 15 s to an hour; a day after its event the message has failed."""
    metadata.jobs.enqueue("a", {"webhook_url": HOOK})
    metadata.jobs.fail("a", "x")
    delays = []
    for _ in range(60):
        claimed = metadata.notifications.claim()
        if claimed is None:
            break
        with engine.connect() as connection:
            now = connection.execute(sa.select(sa.func.now())).scalar_one()
        metadata.notifications.postpone(claimed.id, "away")
        row = rows(engine)[0]
        if row.status == "pending":
            delays.append(round((row.next_attempt_at - now).total_seconds()))
            age(engine, timedelta(seconds=delays[-1] + 1))
    assert delays[:10] == [15, 30, 60, 120, 240, 480, 960, 1920, 3600, 3600]
    assert 24 * 3600 - 3700 < sum(delays) < 24 * 3600 + 3700
    assert (row.status, row.last_error, row.next_attempt_at) == ("failed", "away", None)
