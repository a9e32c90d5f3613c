"""A run's job id and request."""

import re

from s2v_tasks.orchestration.jobs import job_id_for_run, job_id_of, request_of
from s2v_tasks.schemas.request import JOB_ID_PATTERN


def test_every_run_id_becomes_a_legal_job_id() -> None:
    """Whatever Airflow or a person names a run, the job id matches the pattern of the system."""
    for run_id in ["manual__2026-11-22T10:15:30.123456+00:00", "x", "ÄÖÜ", "-", "A" * 250, "drop folder/é.json"]:
        assert re.match(JOB_ID_PATTERN, job_id_for_run(run_id)), run_id


def test_a_job_id_from_a_run_id_is_short_and_says_when_the_run_began() -> None:
    """A person can read it aloud: kind, date and time, and eight characters that tell runs of one second apart."""
    for run_id, readable in {
        "manual__2026-11-22T10:15:30.123456+00:00": "manual-20261122-101530",
        "manual__2026-11-22T10:15:30.123456+00:00_x7Yz": "manual-20261122-101530",
        "scheduled__2026-11-22T00:00:00+00:00": "scheduled-20261122-000000",
        "asset_triggered__2026-11-22T00:00:00Z": "asset-triggered-20261122",
        "Talk of Anna": "talk-of-anna",
        "ÄÖÜ": "run",
        "x" * 250: "x" * 25,
        "2026-11-22": "2026-11-22",
    }.items():
        assert re.fullmatch(rf"{readable}-[0-9a-f]{{8}}", job_id_for_run(run_id)), run_id


def test_runs_of_one_second_have_different_jobs() -> None:
    """What the readable part leaves out still counts."""
    run_ids = [
        f"manual__2026-11-22T10:15:30.{micro:06d}{zone}" for micro in range(500) for zone in ("+00:00", "+01:00")
    ]
    assert len({job_id_for_run(run_id) for run_id in run_ids}) == len(run_ids)


def test_the_job_id_keeps_different_runs_apart_and_repeats_for_the_same_run() -> None:
    """Runs that share their readable part get different jobs; asking twice gives the same one."""
    one, other = "scheduled__" + "a" * 60 + "1", "scheduled__" + "a" * 60 + "2"
    assert job_id_for_run(one) != job_id_for_run(other)
    assert job_id_for_run(one) == job_id_for_run(one)


def test_a_given_job_id_wins_over_the_run_id() -> None:
    """A run that names an earlier job continues that job."""
    assert job_id_of({"params": {"job_id": "my-job"}, "run_id": "r"}) == "my-job"
    for params in ({"job_id": None}, {"job_id": ""}, {}):
        assert job_id_of({"params": params, "run_id": "r"}) == job_id_for_run("r")


def test_the_request_is_all_params_but_the_job_id() -> None:
    """Unknown keys of the run configuration stay in the request, so that the first step refuses them by name."""
    context = {"params": {"prompt": "p", "job_id": "my-job", "colour": "red"}}
    assert request_of(context) == {"prompt": "p", "colour": "red"}
