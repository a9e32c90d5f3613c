"""Check that a cancel in the metadata store ends the work of a step."""

import subprocess
import sys
import threading

import pytest
import sqlalchemy as sa

from s2v_tasks.errors import JobCancelledError, TransientError
from s2v_tasks.metadata.store import MetadataStore
from s2v_tasks.runtime import cancellation
from s2v_tasks.runtime.cancellation import cancellable, refuse_cancelled
from s2v_tasks.settings import Settings, load_settings

JOB = "job-1"


@pytest.fixture
def settings(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("S2V_DATABASE_URL", postgres_url)
    monkeypatch.setattr(cancellation, "POLL_SECONDS", 0.05)
    load_settings.cache_clear()
    return load_settings()


@pytest.fixture
def metadata(engine: sa.Engine) -> MetadataStore:
    metadata = MetadataStore(engine)
    metadata.jobs.enqueue(JOB, {})
    metadata.jobs.start(JOB)
    return metadata


def test_work_is_interrupted_and_unwound(settings: Settings, metadata: MetadataStore) -> None:
    """A cancel interrupts waiting work, whose cleanup still runs."""
    done = []
    canceller = threading.Thread(target=metadata.jobs.request_cancel, args=[JOB])

    def work() -> None:
        with cancellable(JOB, settings):
            canceller.start()
            try:
                threading.Event().wait(300)
                done.append("waited")
            finally:
                done.append("cleaned")

    with pytest.raises(JobCancelledError, match="was cancelled"):
        work()
    canceller.join()
    assert done == ["cleaned"]


def test_a_failure_that_a_cancel_brought_about_is_the_cancel(settings: Settings, metadata: MetadataStore) -> None:
    """The step reports the cancel even if another rank or a signal of Airflow ends it first."""

    def work() -> None:
        with cancellable(JOB, settings):
            metadata.jobs.request_cancel(JOB)
            try:
                threading.Event().wait(300)
            except BaseException as interruption:
                raise TransientError("a peer closed the connection") from interruption

    with pytest.raises(JobCancelledError) as caught:
        work()
    assert isinstance(caught.value.__cause__, TransientError)


def test_a_failure_without_a_cancel_is_unchanged(settings: Settings, metadata: MetadataStore) -> None:
    """Without a cancel, work that fails or succeeds ends as without the watch."""
    with cancellable(JOB, settings):
        pass
    with pytest.raises(TransientError, match="network"), cancellable(JOB, settings):
        raise TransientError("network")


def test_a_process_that_ignores_signals_is_ended(settings: Settings, metadata: MetadataStore) -> None:
    """A process that hangs in a library is ended soon, with the exit code of a permanent error."""
    hang = (
        "import ctypes\n"
        "from s2v_tasks.settings import load_settings\n"
        "from s2v_tasks.runtime import cancellation\n"
        "cancellation.POLL_SECONDS, cancellation.UNWIND_SECONDS = 0.05, 0.2\n"
        "mutex, libc = ctypes.create_string_buffer(64), ctypes.CDLL(None)\n"
        f"with cancellation.cancellable({JOB!r}, load_settings()):\n"
        "    libc.pthread_mutex_lock(mutex)\n"
        "    print('hangs', flush=True)\n"
        "    libc.pthread_mutex_lock(mutex)\n"
    )
    with subprocess.Popen([sys.executable, "-c", hang], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"hangs\n"
        metadata.jobs.request_cancel(JOB)
        try:
            process.communicate(timeout=200)
        finally:
            process.kill()
    assert process.returncode == JobCancelledError.exit_code


def test_no_step_begins_until_the_job_is_started_again(metadata: MetadataStore) -> None:
    """A cancel refuses every step until the ended job is started again."""
    assert metadata.jobs.request_cancel(JOB) == "running"
    metadata.jobs.clear_cancel(JOB)
    with pytest.raises(JobCancelledError):
        refuse_cancelled(metadata, JOB)
    metadata.jobs.cancel(JOB)
    with pytest.raises(JobCancelledError):
        refuse_cancelled(metadata, JOB)
    metadata.jobs.enqueue(JOB, {})
    refuse_cancelled(metadata, JOB)


def test_a_job_that_has_ended_is_not_cancelled(metadata: MetadataStore) -> None:
    """A late cancel does not change the success of a job."""
    metadata.jobs.succeed(JOB, video_uri="s3://b/v.mp4", sha256="0")
    assert metadata.jobs.request_cancel(JOB) == "succeeded"
    assert not metadata.jobs.is_cancel_requested(JOB)
    metadata.jobs.cancel(JOB)
    job = metadata.jobs.get(JOB)
    assert job is not None
    assert job.status == "succeeded"
