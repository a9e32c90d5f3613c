"""Check the budgets of a request and of an installation."""

from typing import Any

import pytest

from s2v_tasks.errors import PermanentError
from s2v_tasks.planning.estimate import check_budget
from s2v_tasks.schemas.plan import Estimate
from s2v_tasks.schemas.request_parsing import parse_request
from s2v_tasks.settings import Settings

ESTIMATE = Estimate(
    pflops=9.0,
    gpu="h100-sxm",
    gpu_seconds=1234.5,
    longest_chain_seconds=1234.5,
    cost=1.029,
    currency="USD",
    peak_gpu_memory_gib=70.0,
)


def check(request: dict[str, Any], **settings: float) -> None:
    fields = {"image_uri": "s3://bucket/a.png", "audio_uri": "s3://bucket/a.wav", "prompt": "A woman speaks."}
    check_budget(ESTIMATE, parse_request(fields | request), Settings(**settings))


def test_a_plan_within_every_budget_passes() -> None:
    """A plan without limits, or one that equals its limits, passes."""
    check({})
    check({"max_gpu_seconds": 1234.5, "max_cost": 1.029}, max_gpu_seconds=1234.5, max_cost=2)


@pytest.mark.parametrize(
    ("request_fields", "settings", "sentences"),
    [
        ({"max_gpu_seconds": 1000}, {}, ["1,234 GPU-seconds on h100-sxm, expected at most 1,000 (max_gpu_seconds of"]),
        ({"max_cost": 1}, {}, ["1.029 USD, expected at most 1 (max_cost of the request)"]),
        ({}, {"max_gpu_seconds": 600.0}, ["expected at most 600 (S2V_MAX_GPU_SECONDS)"]),
        ({"max_cost": 1}, {"max_cost": 0.5}, ["at most 1 (max_cost of the request)", "at most 0.5 (S2V_MAX_COST)"]),
    ],
)
def test_a_plan_over_budget_is_refused_with_the_numbers(
    request_fields: dict[str, Any], settings: dict[str, float], sentences: list[str]
) -> None:
    """The message has each exceeded limit, the expected number, the source of the limit and the remedy."""
    with pytest.raises(PermanentError, match=r"over budget: .*num_clip.*raise the limit") as caught:
        check(request_fields, **settings)
    assert all(sentence in str(caught.value) for sentence in sentences)
