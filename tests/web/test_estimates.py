"""Check the estimate of a form."""

from s2v_tasks.schemas.request_parsing import parse_request
from s2v_tasks.web.estimates import _options
from tests.web.sample_job import REQUEST


def test_the_plan_of_the_form_is_that_of_all_its_fields() -> None:
    """Each field that changes the cost is an option of `s2v plan`."""
    fields = {
        "sample_steps": 4, "guide_steps": [0, 2], "quality": "gate", "max_retakes": 3, "start_from_ref": True,
        "adapters": [{"name": "few-steps", "strength": 0.5}], "priority": "high", "labels": {"team": "news"},
    }  # fmt: skip
    assert _options(parse_request(REQUEST | fields)) == [
        "--sample-steps=4", "--guide-steps=0:2", "--adapter=few-steps=0.5", "--start-from-ref", "--quality=gate",
        "--max-retakes=3",
    ]  # fmt: skip
