"""What a record says of a job as a whole."""

import pytest

from s2v_tasks.metadata.records import JobRecord
from s2v_tasks.metadata.repository import Ledger


def record(ledger: Ledger) -> JobRecord:
    job = ledger.job("job-1")
    assert job is not None
    return job


def test_a_job_has_ended_when_nothing_more_happens(ledger: Ledger) -> None:
    """Succeeded, failed or cancelled; not while it waits or runs."""
    ledger.job_queued("job-1", {})
    assert not record(ledger).has_ended
    ledger.job_started("job-1")
    assert not record(ledger).has_ended
    ledger.job_cancelled("job-1")
    assert (record(ledger).has_ended, record(ledger).exit_code) == (True, 130)
    ledger.job_queued("job-1", {})
    ledger.job_failed("job-1", "Why.")
    assert record(ledger).has_ended
    ledger.job_succeeded("job-1", "s3://o/v.mp4", "00")
    assert (record(ledger).has_ended, record(ledger).exit_code) == (True, 0)


@pytest.mark.parametrize(
    ("codes", "expected"), [([], 75), ([65], 65), ([78], 78), ([75], 75), ([65, 78], 78), ([78, 65], 65), ([65, 1], 75)]
)
def test_a_failed_job_ends_with_the_code_of_the_step_that_failed_last(
    ledger: Ledger, codes: list[int], expected: int
) -> None:
    """A step that could not say why may be tried again; other events say nothing of it."""
    ledger.job_queued("job-1", {})
    for code in codes:
        ledger.event("job-1", "step_failed", step="stitch", detail={"exit_code": code})
    ledger.job_failed("job-1", "Why.")
    ledger.event("job-1", "step_finished", step="close_job", detail={"exit_code": 0})
    assert record(ledger).exit_code == expected
