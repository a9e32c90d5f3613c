"""Check the comparison of requests."""

from typing import Any

import pytest

from s2v_tasks.errors import JobTakenError
from s2v_tasks.schemas.starts import differing_fields, refuse_other_request

REQUEST: dict[str, Any] = {"image_uri": "s3://bucket/a.png", "audio_uri": "s3://bucket/a.wav", "prompt": "Hello."}


@pytest.mark.parametrize(
    ("changes", "differing"),
    [
        ({}, []),
        ({"preset": "balanced", "num_clip": None, "labels": {}, "job_id": "talk"}, []),
        ({"sample_steps": 4}, ["sample_steps"]),
        ({"prompt": "Bye.", "image_uri": "s3://bucket/b.png"}, ["image_uri", "prompt"]),
        ({"size": "1*1"}, ["size"]),
        ({"labels": {"team": "a"}}, ["labels"]),
    ],
)
def test_a_given_default_equals_an_omitted_field(changes: dict[str, Any], differing: list[str]) -> None:
    """A given default equals an omitted field, in both directions; a bad field is a difference."""
    assert differing_fields(REQUEST | changes, REQUEST) == differing
    assert differing_fields(REQUEST, REQUEST | changes) == differing


@pytest.mark.parametrize("bad", [{}, {"size": "1*1"}])
def test_fields_omitted_for_a_form_are_no_difference(bad: dict[str, Any]) -> None:
    """With `given_only` just the fields of the first request are compared, also in invalid requests."""
    filled = REQUEST | {"sample_steps": 4} | bad
    assert differing_fields(REQUEST | bad, filled, given_only=True) == []
    assert differing_fields(REQUEST | bad | {"sample_steps": None}, filled, given_only=True) == []
    assert differing_fields(filled, REQUEST | bad, given_only=True) == ["sample_steps"]


def test_the_refusal_names_the_remedies() -> None:
    """The message has the job, the fields and both remedies, and no value, which may be a secret."""
    with pytest.raises(JobTakenError) as refused:
        refuse_other_request("talk", REQUEST | {"webhook_url": "https://example.com/?token=1"}, REQUEST)
    assert str(refused.value) == (
        "Job 'talk' exists with other values of webhook_url: choose another job id, or use `s2v rerun talk` to "
        "change its video."
    )
    refuse_other_request("talk", REQUEST, dict(REQUEST))
