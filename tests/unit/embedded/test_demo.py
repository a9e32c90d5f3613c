"""Check the demo without running it."""

import re
from datetime import UTC, datetime

from s2v_tasks.embedded.demo import new_job_id
from s2v_tasks.schemas.job import JOB_ID_PATTERN


def test_demos_of_one_second_are_different_jobs() -> None:
    """Job ids begin with the time, and those of one second differ."""
    now = datetime(2026, 11, 26, 13, 7, 28, tzinfo=UTC)
    job_ids = {new_job_id(now) for _ in range(1000)}
    assert len(job_ids) == 1000
    assert all(re.fullmatch(JOB_ID_PATTERN, job_id) for job_id in job_ids)
    assert all(job_id.startswith("demo-20261126-130728-") for job_id in job_ids)
