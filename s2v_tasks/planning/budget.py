"""Budgets: a plan that is expected to cost too much is refused before anything is spent."""

from collections.abc import Iterator

from s2v_tasks.errors import PermanentError
from s2v_tasks.schemas.plan import Estimate
from s2v_tasks.schemas.request import Request
from s2v_tasks.settings import Settings


def check_budget(estimate: Estimate, request: Request, settings: Settings) -> None:
    """PermanentError that names every limit, of the request and of the installation, that the plan exceeds."""
    problems = [*_exceeded(estimate, request, settings)]
    if problems:
        raise PermanentError(
            f"The plan is over budget: {'; '.join(problems)}. Make less (num_clip for a preview, fewer sample_steps, "
            "a smaller size, guidance 1), or raise the limit."
        )


def _exceeded(estimate: Estimate, request: Request, settings: Settings) -> Iterator[str]:
    for limit, source in (
        (request.max_gpu_seconds, "max_gpu_seconds of the request"),
        (settings.max_gpu_seconds, "S2V_MAX_GPU_SECONDS"),
    ):
        if limit is not None and estimate.gpu_seconds > limit:
            yield f"{estimate.gpu_seconds:,.0f} GPU-seconds on {estimate.gpu}, expected at most {limit:,g} ({source})"
    for limit, source in ((request.max_cost, "max_cost of the request"), (settings.max_cost, "S2V_MAX_COST")):
        if limit is not None and estimate.cost > limit:
            yield f"{estimate.cost:,.4g} {estimate.currency}, expected at most {limit:,g} ({source})"
