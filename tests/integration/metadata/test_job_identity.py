"""Check which requests are those of an existing job: the form fills in values, and a job may have no request yet."""

import pytest
import sqlalchemy as sa

from s2v_tasks.errors import JobTakenError
from s2v_tasks.metadata.queue import NewJob, enqueue
from s2v_tasks.metadata.session import transaction
from s2v_tasks.metadata.store import MetadataStore

REQUEST = {"image_uri": "s3://bucket/a.png", "audio_uri": "s3://bucket/a.wav", "prompt": "Hello."}


@pytest.fixture
def waiting(engine: sa.Engine) -> MetadataStore:
    """The metadata store with a job that waits."""
    with transaction(engine) as connection:
        enqueue(connection, [NewJob("talk", REQUEST)], "batch")
    return MetadataStore(engine)


def test_the_awaited_run_may_fill_in_defaults(waiting: MetadataStore) -> None:
    """The run that the queue starts may add defaults of the form; any other run must have the same request."""
    filled = REQUEST | {"size": "128*192", "num_clip": None}
    for run_id in (None, "manual__1", "talk--2"):
        with pytest.raises(JobTakenError, match="other values of size:"):
            waiting.jobs.enqueue("talk", filled, dag_run_id=run_id)
    with pytest.raises(JobTakenError, match="other values of prompt:"):
        waiting.jobs.enqueue("talk", filled | {"prompt": "Bye."}, dag_run_id="talk")
    waiting.jobs.enqueue("talk", filled, dag_run_id="talk")
    job = waiting.jobs.get("talk")
    assert job is not None
    assert (job.request, job.dag_run_id, job.source) == (filled, "talk", "batch")


def test_a_request_is_checked_without_being_queued(waiting: MetadataStore) -> None:
    """Fields that a form fills in later may be omitted if the caller allows it."""
    waiting.jobs.check_request("unknown", REQUEST)
    waiting.jobs.check_request("talk", REQUEST | {"preset": "balanced", "job_id": "talk"})
    waiting.jobs.enqueue("talk", REQUEST | {"size": "128*192"}, dag_run_id="talk")
    waiting.jobs.check_request("talk", REQUEST, given_only=True)
    with pytest.raises(JobTakenError, match="other values of size:"):
        waiting.jobs.check_request("talk", REQUEST)
    with pytest.raises(JobTakenError, match="other values of num_clip:"):
        waiting.jobs.check_request("talk", REQUEST | {"num_clip": 2}, given_only=True)


def test_a_job_without_a_request_accepts_any(waiting: MetadataStore) -> None:
    """A job whose request could not be read, and that is started again, takes the request that is brought first."""
    waiting.jobs.fail("bare", "The request is not JSON.")
    waiting.jobs.start("bare")
    waiting.jobs.check_request("bare", REQUEST)
    waiting.jobs.enqueue("bare", REQUEST, dag_run_id="manual__1")
    job = waiting.jobs.get("bare")
    assert job is not None
    assert job.request == REQUEST
    with pytest.raises(JobTakenError, match="other values of prompt:"):
        waiting.jobs.enqueue("bare", REQUEST | {"prompt": "Bye."}, dag_run_id="manual__2")
