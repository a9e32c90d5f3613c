"""Check the rules of job ids and run ids."""

import re

import pytest

from s2v_tasks.errors import PermanentError
from s2v_tasks.schemas.job import JOB_ID_PATTERN, check_job_id, is_job_id, job_id_of_run, job_slug, run_id_of_start


def test_every_run_id_becomes_a_legal_job_id() -> None:
    """The job id of any run id matches the pattern."""
    for run_id in ["manual__2026-11-22T10:15:30.123456+00:00", "x", "ÄÖÜ", "-", "A" * 250, "drop folder/é.json"]:
        assert re.match(JOB_ID_PATTERN, job_id_of_run(run_id)), run_id


def test_a_job_id_from_a_run_id_has_kind_and_time() -> None:
    """The id has kind, date, time and eight characters that distinguish runs of one second."""
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
        assert re.fullmatch(rf"{readable}-[0-9a-f]{{8}}", job_id_of_run(run_id)), run_id


def test_runs_of_one_second_have_different_jobs() -> None:
    """Characters that the readable part omits change the job id."""
    run_ids = [
        f"manual__2026-11-22T10:15:30.{micro:06d}{zone}" for micro in range(500) for zone in ("+00:00", "+01:00")
    ]
    assert len({job_id_of_run(run_id) for run_id in run_ids}) == len(run_ids)


def test_the_job_id_keeps_different_runs_apart_and_repeats_for_the_same_run() -> None:
    """Runs with the same readable part have different job ids, and the same run always has the same id."""
    one, other = "scheduled__" + "a" * 60 + "1", "scheduled__" + "a" * 60 + "2"
    assert job_id_of_run(one) != job_id_of_run(other)
    assert job_id_of_run(one) == job_id_of_run(one)


def test_a_given_job_id_wins_over_the_run_id() -> None:
    """A given job id is used; a malformed one is passed on and refused later."""
    assert job_id_of_run("r", "my-job") == "my-job"
    assert job_id_of_run("r", "My Job") == "My Job"
    for nothing in (None, ""):
        assert job_id_of_run("r", nothing) == job_id_of_run("r")


@pytest.mark.parametrize("value", ["ab", "-abc", "Abc", "a_b", "a" * 64, "abc\n", 5, None])
def test_a_malformed_job_id_is_refused(value: object) -> None:
    """The message has the value and the rule."""
    assert not is_job_id(value)
    with pytest.raises(PermanentError, match="expected 3 to 63 lower-case letters, digits and dashes"):
        check_job_id(str(value) if isinstance(value, str) else "")


def test_a_slug_is_the_readable_part_of_a_job_id() -> None:
    """Other characters become one dash, and a slug neither begins nor ends with one."""
    assert job_slug("  Anna's Talk (2).wav ") == "anna-s-talk-2-wav"
    assert job_slug("abc def", 4) == "abc"
    assert job_slug("ÄÖÜ") == ""


def test_a_later_start_has_a_run_of_its_own() -> None:
    """The first run has the name of the job, and later runs have a number."""
    assert [run_id_of_start("talk", number) for number in (1, 2, 10)] == ["talk", "talk--2", "talk--10"]
