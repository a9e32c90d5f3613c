"""Check jobs that wait in the database: their order, and jobs whose run is lost."""

import json

import psycopg
import pytest

from s2v_tasks.cli.ingestion import close_lost, next_jobs, refuse_job
from s2v_tasks.errors import PermanentError
from s2v_tasks.settings import load_settings
from tests.integration.drop_folder import Folder


def test_jobs_start_by_priority_then_by_age_under_the_limit(folder: Folder) -> None:
    """A started job takes a place until it ends; a job that is run by hand takes none."""
    folder.jobs.enqueue("by-hand", {})
    folder.jobs.start("by-hand")
    for name, priority in [("a", "low"), ("b", "normal"), ("c", "normal"), ("d", "high"), ("e", "normal")]:
        folder.drop(name, {"priority": priority, "job_id": f"job-{name}"})
        folder.sweep()
    assert folder.queue.num_waiting() == 5
    assert [job.job_id for job in folder.queue.next(max_running=3)] == ["job-d", "job-b", "job-c"]
    folder.queue.mark_started(["job-d", "job-b"])
    folder.jobs.start("job-d")
    assert [job.job_id for job in folder.queue.next(max_running=3)] == ["job-c"]
    folder.jobs.fail("job-d", "No GPU.")
    assert [job.job_id for job in folder.queue.next(max_running=3)] == ["job-c", "job-e"]
    assert folder.queue.next(max_running=1) == []
    assert folder.queue.num_waiting() == 3


def test_a_job_whose_run_is_gone_gives_its_place_back(
    folder: Folder, postgres_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The queue lists a silent job, and closes it if Airflow does not know its run."""
    monkeypatch.setenv("S2V_DATABASE_URL", postgres_url)
    monkeypatch.setenv("S2V_MAX_RUNNING_JOBS", "3")
    load_settings.cache_clear()
    for name in "abcd":
        folder.drop(name, {"job_id": f"job-{name}"})
        folder.sweep()
    folder.queue.mark_started(["job-a", "job-b", "job-c"])
    folder.jobs.request_cancel("job-b")
    with psycopg.connect(postgres_url) as connection:
        connection.execute("UPDATE jobs SET updated_at = now() - interval '20 min' WHERE job_id IN ('job-a', 'job-b')")
    next_jobs()
    look = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (look["jobs"], sorted(look["silent_runs"])) == ([], ["job-a", "job-b"])
    close_lost(["job-a", "job-b", "job-c"])
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"closed": ["job-a", "job-b"]}
    assert {job.job_id: job.status for job in folder.jobs.recent()} == {
        "job-a": "failed", "job-b": "cancelled", "job-c": "queued", "job-d": "queued"
    }  # fmt: skip
    next_jobs()
    assert [turn["job_id"] for turn in json.loads(capsys.readouterr().out.splitlines()[-1])["jobs"]] == ["job-d"]


def test_a_job_that_is_cancelled_while_it_is_started_does_not_start(folder: Folder) -> None:
    """The run of a job that is cancelled meanwhile refuses to start, unless a person clears that run."""
    folder.drop("a", {"job_id": "job-a"})
    folder.sweep()
    [turn] = folder.queue.next(max_running=1)
    folder.jobs.request_cancel("job-a")
    folder.jobs.cancel("job-a")
    folder.queue.mark_started(["job-a"])
    folder.jobs.clear_cancel("job-a", turn.run_id)
    assert folder.jobs.is_cancel_requested("job-a")
    folder.jobs.clear_cancel("job-a", turn.run_id)
    assert not folder.jobs.is_cancel_requested("job-a")


def test_a_job_that_is_refused_for_good_waits_no_longer(
    folder: Folder, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The refused job fails with its reason, and the next job starts."""
    monkeypatch.setenv("S2V_DATABASE_URL", postgres_url)
    load_settings.cache_clear()
    for name in "ab":
        folder.drop(name, {"job_id": f"job-{name}"})
        folder.sweep()
    refuse_job("job-a", reason="Airflow refuses its run.")
    job = folder.jobs.get("job-a")
    assert job is not None
    assert (job.status, job.reason) == ("failed", "Airflow refuses its run.")
    assert [turn.job_id for turn in folder.queue.next(max_running=1)] == ["job-b"]


def test_a_refused_job_that_does_not_wait_is_not_changed(
    folder: Folder, postgres_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A refusal that comes late keeps the state of a job; one of an unknown job is an error and makes no job."""
    monkeypatch.setenv("S2V_DATABASE_URL", postgres_url)
    load_settings.cache_clear()
    folder.drop("a", {"job_id": "job-a"})
    folder.sweep()
    folder.queue.mark_started(["job-a"])
    before = folder.jobs.get("job-a")
    refuse_job("job-a", reason="Airflow refuses its run.")
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"job_id": "job-a", "refused": False}
    with pytest.raises(PermanentError, match=r"Job 'no-job' does not exist: `s2v jobs`"):
        refuse_job("no-job", reason="Airflow refuses its run.")
    assert (folder.jobs.get("job-a"), folder.jobs.get("no-job")) == (before, None)
