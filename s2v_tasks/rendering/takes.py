"""Takes of a clip: renderings with different seeds.

Which take is kept follows from stored measures, the request and the budget alone. A process that was killed anywhere
therefore repeats the decision of the process before it.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence

from s2v_tasks.runtime.context import StepContext
from s2v_tasks.schemas.plan import ClipPlan, Plan
from s2v_tasks.schemas.quality import Take
from s2v_tasks.schemas.request import Request


def take_seed(seed: int, take: int) -> int:
    """Return the seed of a take: take 0 has the seed of the plan, each other one a seed made from it and its number."""
    if take == 0:
        return seed
    digest = hashlib.sha256(f"{seed} {take}".encode()).digest()
    return int.from_bytes(digest[:7], "big")  # below 2**56, so that a request can repeat it as `base_seed`


def as_take(clip: ClipPlan, take: int) -> ClipPlan:
    """Return the clip with the seed of a take."""
    return clip.model_copy(update={"seed": take_seed(clip.seed, take)}) if take else clip


def with_takes(plan: Plan, takes: Mapping[int, int]) -> Plan:
    """Return the plan with the seeds of these takes, by the index of their clip."""
    return plan.model_copy(update={"clips": tuple(as_take(clip, takes.get(clip.clip_index, 0)) for clip in plan.clips)})


def decide(takes: Sequence[Take], max_retakes: int) -> int | None:
    """Return the number of the take to keep; None if another take is to be rendered.

    The first take that does not fail is kept. Otherwise, after the last retake, it is the best one. A take that could
    not be measured ends the retakes: another one would probably not be measured either.
    """
    considered = takes[: max_retakes + 1]
    for take in considered:
        if take.measured and not take.fails:
            return take.take
    if len(considered) > max_retakes or any(take.measured is None for take in considered):
        return best(considered)
    return None


def best(takes: Iterable[Take]) -> int:
    """Return the number of the take with the highest score, the earlier of equal ones."""
    return max(takes, key=lambda take: (take.score, -take.take)).take


def can_afford_retake(ctx: StepContext, plan: Plan, clip: ClipPlan, request: Request) -> bool:
    """Return True if one more take of the clip, and then every later clip, are expected to stay within all budgets.

    Spending only grows, so a repeated question is never answered by yes after a no.
    """
    limits = _limits_in_gpu_seconds(plan, request.max_gpu_seconds, request.max_cost)
    limits += _limits_in_gpu_seconds(plan, ctx.settings.max_gpu_seconds, ctx.settings.max_cost)
    if not limits:
        return True
    rendered = plan.clips[len(plan.inherited) :]
    seconds_per_pflop = plan.estimate.gpu_seconds / max(sum(other.pflops for other in rendered), 1e-12)
    ahead = sum(other.pflops for other in rendered if other.clip_index >= clip.clip_index)
    spent = sum(
        spending.used_gpu_seconds + spending.wasted_gpu_seconds
        for spending in ctx.metadata.costs.spending("job", job_id=ctx.job_id)
    )
    return spent + seconds_per_pflop * ahead <= min(limits)


def _limits_in_gpu_seconds(plan: Plan, max_gpu_seconds: float | None, max_cost: float | None) -> list[float]:
    limits = [] if max_gpu_seconds is None else [max_gpu_seconds]
    if max_cost is not None and plan.estimate.cost > 0:
        limits.append(max_cost * plan.estimate.gpu_seconds / plan.estimate.cost)
    return limits
