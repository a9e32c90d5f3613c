"""Check the properties of a job record that summarise the job."""

import pytest

from s2v_tasks.metadata.store import MetadataStore
from s2v_tasks.metadata.tables import Job


def record(metadata: MetadataStore) -> Job:
    job = metadata.jobs.get("job-1")
    assert job is not None
    return job


def test_a_job_has_ended_when_nothing_more_happens(metadata: MetadataStore) -> None:
    """Succeeded, failed and cancelled jobs have ended; waiting and running ones have not."""
    metadata.jobs.enqueue("job-1", {})
    assert not record(metadata).has_ended
    metadata.jobs.start("job-1")
    assert not record(metadata).has_ended
    metadata.jobs.cancel("job-1")
    assert (record(metadata).has_ended, record(metadata).exit_code) == (True, 130)
    metadata.jobs.enqueue("job-1", {})
    metadata.jobs.fail("job-1", "Why.")
    assert record(metadata).has_ended
    metadata.jobs.succeed("job-1", "s3://o/v.mp4", "00")
    assert (record(metadata).has_ended, record(metadata).exit_code) == (True, 0)


@pytest.mark.parametrize(
    ("codes", "expected"), [([], 75), ([65], 65), ([78], 78), ([75], 75), ([65, 78], 78), ([78, 65], 65), ([65, 1], 75)]
)
def test_a_failed_job_ends_with_the_code_of_the_step_that_failed_last(
    metadata: MetadataStore, codes: list[int], expected: int
) -> None:
    """The code is that of the last failed step; without a reported code it is 75, and other events do not count."""
    metadata.jobs.enqueue("job-1", {})
    for code in codes:
        metadata.events.record("job-1", "step_failed", step="stitch", detail={"exit_code": code})
    metadata.jobs.fail("job-1", "Why.")
    metadata.events.record("job-1", "step_finished", step="close_job", detail={"exit_code": 0})
    assert record(metadata).exit_code == expected
