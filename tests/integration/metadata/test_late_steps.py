"""Check that a step of a process that was silent for long changes neither an ended job nor its next start."""

from collections.abc import Callable
from contextlib import nullcontext
from datetime import datetime

import pytest

from s2v_tasks.errors import TransientError
from s2v_tasks.metadata.ingestion import NewRow
from s2v_tasks.metadata.queue import NewJob
from s2v_tasks.metadata.store import MetadataStore
from s2v_tasks.schemas.events import JobEvent
from s2v_tasks.schemas.plan import Plan
from tests.integration.metadata.conftest import job

PROMPT = {"prompt": "A person speaks."}

Planned = Callable[..., MetadataStore]

LATE: dict[str, Callable[[MetadataStore, datetime, Plan], None]] = {
    "enqueue": lambda metadata, began_at, _: metadata.jobs.enqueue("job-1", PROMPT, began_at=began_at),
    "start": lambda metadata, began_at, _: metadata.jobs.start("job-1", began_at=began_at),
    "start by clip": lambda metadata, began_at, _: metadata.jobs.start("job-1", by_clip=True, began_at=began_at),
    "record_plan": lambda metadata, began_at, plan: metadata.jobs.record_plan("job-1", plan, began_at=began_at),
    "refuse_late": lambda metadata, began_at, _: metadata.jobs.refuse_late("job-1", began_at),
    "fail": lambda metadata, began_at, _: metadata.jobs.fail("job-1", "Why.", began_at=began_at),
    "cancel": lambda metadata, began_at, _: metadata.jobs.cancel("job-1", began_at=began_at),
    "succeed": lambda metadata, began_at, _: metadata.jobs.succeed("job-1", "s3://v", "ab", began_at=began_at),
}


@pytest.mark.parametrize("name", LATE)
def test_a_step_of_an_earlier_start_changes_nothing(name: str, planned: Planned, plan: Callable[..., Plan]) -> None:
    """A step that was silent until the job was cancelled and queued again is refused, also when the job waits."""
    metadata = planned(2)
    began_at = metadata.now()
    metadata.jobs.cancel("job-1")
    metadata.events.record("job-1", JobEvent.STEP_FINISHED, step="close_job")
    metadata.batches.register("batch", "s3://b/m.jsonl", "etag", [NewRow(1, None, NewJob("job-1", PROMPT))])
    assert metadata.batches.retry("batch") == 1
    waiting = job(metadata)
    with pytest.raises(TransientError, match=r"job-1 was started again since .* \(it is queued\)"):
        LATE[name](metadata, began_at, plan(3))
    assert job(metadata) == waiting
    assert [ready.job_id for ready in metadata.queue.next(9)] == ["job-1"]


@pytest.mark.parametrize("name", sorted(set(LATE) - {"start by clip"}))
def test_a_step_does_not_disturb_the_next_start(name: str, planned: Planned, plan: Callable[..., Plan]) -> None:
    """A step of an earlier start is refused while the next start runs; the steps of that start are not."""
    metadata = planned(2)
    began_at = metadata.now()
    metadata.jobs.cancel("job-1")
    next_at = metadata.now()
    for _ in range(2):  # a commit whose answer was lost is repeated
        metadata.jobs.enqueue("job-1", PROMPT, dag_run_id="run-2", began_at=next_at)
        metadata.jobs.start("job-1", began_at=next_at)
    running = job(metadata)
    with pytest.raises(TransientError, match=r"job-1 was started again since .* \(it is running\)"):
        LATE[name](metadata, began_at, plan(3))
    assert job(metadata) == running
    for step in ("start", "record_plan", "refuse_late", "succeed", "succeed"):
        LATE[step](metadata, next_at, plan(3))
    assert job(metadata).status == "succeeded"


@pytest.mark.parametrize("end", ["succeeded", "cancelled", "failed"])
@pytest.mark.parametrize("name", sorted(set(LATE) - {"cancel"}))
def test_a_late_step_does_not_change_how_a_job_ended(
    name: str, end: str, planned: Planned, plan: Callable[..., Plan]
) -> None:
    """A step that goes on after the end of its job is refused; only a failed job may get a later reason."""
    metadata = planned(2)
    began_at = metadata.now()
    if end == "succeeded":
        metadata.jobs.succeed("job-1", "s3://other", "cd")
    else:
        LATE["fail" if end == "failed" else "cancel"](metadata, began_at, plan(2))
    metadata.events.record("job-1", JobEvent.STEP_FINISHED, step="close_job")
    ended = job(metadata)
    with nullcontext() if (name, end) == ("fail", "failed") else pytest.raises(TransientError, match="has ended since"):
        LATE[name](metadata, began_at, plan(3))
        ended = job(metadata)
    assert job(metadata) == ended
    assert ended.status == end
