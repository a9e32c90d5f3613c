"""Check `s2v approve` and `s2v reject`: they find and answer the question of a job."""

import json
from typing import Any

import pytest

from s2v_tasks.cli import airflow_api
from s2v_tasks.cli.approval import approve, reject
from s2v_tasks.errors import PermanentError

RUNS = [{"dag_run_id": "other", "conf": {"job_id": "other"}}, {"dag_run_id": "talk--2", "conf": {"job_id": "talk"}}]
FORM = {"from_clip": {"value": None, "schema": {"maximum": 1}, "description": None}}
QUESTION = {"subject": "Approve the video of job talk?", "created_at": "2026-11-01T00:00:00+00:00", "params": FORM}


class Api:
    """An Airflow with one open question."""

    answers: list[tuple[Any, str, dict[str, Any]]]
    is_first = True

    def __init__(self) -> None:
        self.answers = []

    def active_runs(self) -> list[dict[str, Any]]:
        return RUNS

    def open_questions(self, run_id: str) -> list[dict[str, Any]]:
        return [QUESTION] if run_id == "talk--2" else []

    def answer(self, question: dict[str, Any], option: str, fields: dict[str, Any]) -> bool:
        self.answers.append((question, option, fields))
        return self.is_first


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Api:
    api = Api()
    monkeypatch.setattr(airflow_api.AirflowApi, "from_settings", lambda _: api)
    return api


def test_the_question_of_the_job_is_answered(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    """Only given fields of a rejection are sent; an empty prompt and clip 0 count as given."""
    approve("talk", as_json=True)
    assert json.loads(capsys.readouterr().out)["answer"] == "approve"
    reject("talk", note="No.", from_clip=0, base_seed=7)
    assert api.answers == [
        (QUESTION, "Approve", {}),
        (QUESTION, "Reject", {"note": "No.", "from_clip": 0, "base_seed": 7}),
    ]


def test_a_job_that_waits_for_nothing_is_refused(api: Api) -> None:
    """A job without a question, or with one that was just answered, is refused with a hint."""
    with pytest.raises(PermanentError, match=r"Job other does not wait for an approval.*s2v job other"):
        approve("other")
    api.is_first = False
    with pytest.raises(PermanentError, match="does not wait for an approval"):
        reject("talk")


def test_a_bad_rejection_is_refused_before_it_is_sent(api: Api) -> None:
    """The limits of a request hold for the fields of a rejection."""
    with pytest.raises(PermanentError, match="Bad rejection: sample_steps 0: Input should be greater"):
        reject("talk", sample_steps=0)
    assert api.answers == []


def test_a_first_clip_that_the_video_does_not_have_is_refused_before_it_is_sent(api: Api) -> None:
    """The form of the question states the last clip; a question without it is left to the step."""
    with pytest.raises(PermanentError, match=r"--from-clip 2: expected 0 to 1, the rendered clips\."):
        reject("talk", from_clip=2, base_seed=5)
    assert api.answers == []
    reject("talk", from_clip=1, base_seed=5)
    assert len(api.answers) == 1
