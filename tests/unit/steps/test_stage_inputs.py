"""Check the intake of a request."""

import pytest

from s2v_tasks.steps.stage_inputs import source_of


@pytest.mark.parametrize(
    ("data", "run_id", "source"),
    [
        ({}, None, "cli"),
        ({"parent_job_id": None}, "manual__2026-11-22T20:00:00+00:00", "ui"),
        ({}, "speech-0123456789", "api"),
        ({}, "speech-0123456789--2", "api"),
        ({"parent_job_id": "speech-0123456789"}, "speech-r2", "rerun"),
    ],
)
def test_the_source_of_a_job_follows_from_its_run(data: dict[str, str | None], run_id: str | None, source: str) -> None:
    """The form, a step by hand, `s2v submit` and a rerun give different sources."""
    assert source_of(data, run_id) == source
