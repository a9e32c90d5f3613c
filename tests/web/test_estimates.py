"""Check the estimate of a form."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from s2v_tasks.errors import TransientError
from s2v_tasks.schemas.request_parsing import parse_request
from s2v_tasks.web import estimates
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


def test_waiting_estimates_leave_threads_to_airflow(installation: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 40 estimates at once, two run and a few wait. The others are refused at once, with a remedy."""
    from s2v_tasks.web.services import services

    refused, go_on = threading.Semaphore(0), threading.Event()
    monkeypatch.setattr(estimates, "_estimate", lambda *_: go_on.wait(60))
    request = parse_request(REQUEST)

    def one(_: int) -> str:
        try:
            return str(estimates.estimate(services(), request))
        except TransientError as error:
            refused.release()
            return str(error)

    with ThreadPoolExecutor(40) as pool:
        answers = [pool.submit(one, number) for number in range(40)]
        for _ in range(32):
            assert refused.acquire(timeout=10)
        go_on.set()
    said = [answer.result() for answer in answers]
    assert said.count("Other plans are being made: try again in some seconds.") == 32
    assert said.count("True") == 8
