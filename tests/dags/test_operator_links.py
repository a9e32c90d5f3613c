"""Check the links from a run to its files."""

from typing import Any

import pytest

from s2v_tasks.orchestration.operator_links import VideoLink
from s2v_tasks.orchestration.step_operators import StepOperator
from s2v_tasks.schemas.steps import PUBLISH, STITCH, VALIDATE


def test_publish_links_to_all_files_and_validate_to_the_report() -> None:
    """`publish` links to all files, `validate` to the report, and other steps have no links."""
    names = {
        step.name: [link.name for link in StepOperator(task_id="step", step=step).operator_extra_links]
        for step in (PUBLISH, VALIDATE, STITCH)
    }
    assert names == {"publish": ["Video", "Report", "Contact sheet"], "validate": ["Report"], "stitch": []}


def test_a_link_leads_through_airflow_to_a_file_of_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """A link has Airflow's address and the job of the run, and no signature that could expire or leak."""
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "https://airflow.example.org/team/")
    publish: Any = StepOperator(task_id="publish", step=PUBLISH)
    publish.job_id = "my-job"
    assert VideoLink().get_link(publish, ti_key=None) == "https://airflow.example.org/team/s2v/jobs/my-job/video"
    publish.job_id = "a b?c"  # refused by the first step, but the form may hold it
    assert VideoLink().get_link(publish, ti_key=None).endswith("/jobs/a%20b%3Fc/video")
