"""A run's job id and request."""

import re

from s2v_tasks.orchestration.jobs import job_id_for_run, job_id_of, request_of
from s2v_tasks.schemas.request import JOB_ID_PATTERN


def test_every_run_id_becomes_a_legal_job_id() -> None:
    """Whatever Airflow or a person names a run, the job id matches the pattern of the system."""
    for run_id in ["manual__2026-11-22T10:15:30.123456+00:00", "x", "ÄÖÜ", "-", "A" * 250, "drop folder/é.json"]:
        assert re.match(JOB_ID_PATTERN, job_id_for_run(run_id)), run_id


def test_the_job_id_keeps_different_runs_apart_and_repeats_for_the_same_run() -> None:
    """Runs that share their readable part get different jobs; asking twice gives the same one."""
    one, other = "scheduled__" + "a" * 60 + "1", "scheduled__" + "a" * 60 + "2"
    assert job_id_for_run(one) != job_id_for_run(other)
    assert job_id_for_run(one) == job_id_for_run(one)


def test_a_given_job_id_wins_over_the_run_id() -> None:
    """A run that names an earlier job continues that job."""
    assert job_id_of({"params": {"job_id": "my-job"}, "run_id": "r"}) == "my-job"
    assert job_id_of({"params": {"job_id": None}, "run_id": "r"}) == job_id_for_run("r")


def test_the_request_is_all_params_but_the_job_id() -> None:
    """Unknown keys of the run configuration stay in the request, so that the first step refuses them by name."""
    context = {"params": {"prompt": "p", "job_id": "my-job", "colour": "red"}}
    assert request_of(context) == {"prompt": "p", "colour": "red"}
