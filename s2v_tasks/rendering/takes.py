"""Takes of a clip, renderings with different seeds, and the gate that measures them and keeps one (ADR 19).

The decision depends only on stored measures, the request and the budget. After a kill, the next process therefore
repeats the same decision. The only state is `clips/<k>/quality.json`. A take is stored, then measured, then recorded,
before the next take is rendered. `kept` is written before the kept take becomes the clip again.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from s2v_tasks import log
from s2v_tasks.errors import PermanentError, TransientError
from s2v_tasks.rendering.measuring import ClipMeasurer
from s2v_tasks.runtime.context import StepContext
from s2v_tasks.schemas.events import JobEvent
from s2v_tasks.schemas.manifest import Manifest
from s2v_tasks.schemas.plan import ClipPlan, Plan
from s2v_tasks.schemas.quality import Take, TakeRecord
from s2v_tasks.schemas.request import Request
from s2v_tasks.schemas.steps import RENDER_CLIP
from s2v_tasks.storage.clip_state import TakeRecords


def take_seed(seed: int, take: int) -> int:
    """Return the seed of a take: for take 0 the seed of the plan, for others a seed derived from it and the number."""
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
    """Return the number of the take to keep; None if another take must be rendered.

    The first take that does not fail is kept. After the last retake, the best take is kept. A take that could not be
    measured ends the retakes, because further takes could probably not be measured either.
    """
    considered = takes[: max_retakes + 1]
    for take in considered:
        if take.measured and not take.fails:
            return take.take
    if len(considered) > max_retakes or any(take.measured is None for take in considered):
        return best(considered)
    return None


def best(takes: Iterable[Take]) -> int:
    """Return the number of the take with the highest score, the earliest of several equal ones."""
    return max(takes, key=lambda take: (take.score, -take.take)).take


def can_afford_retake(ctx: StepContext, plan: Plan, clip: ClipPlan, request: Request) -> bool:
    """Return True if one more take of the clip and all later clips are expected to fit all budgets.

    Spending only grows, so the answer never changes from False to True.
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


class TakeGate:
    """Measures takes of one job and decides by its request: `quality`, `max_retakes`, `after_retakes`, budgets."""

    def __init__(self, ctx: StepContext, plan: Plan, request: Request) -> None:
        self._ctx, self._plan, self._request = ctx, plan, request
        self._records = TakeRecords(ctx.store, ctx.layout)
        self._measurer = ClipMeasurer(ctx, plan)

    @property
    def has_retakes(self) -> bool:
        """Return True if a clip that fails is rendered again."""
        return self._request.quality == "gate"

    def begin(self, clip: ClipPlan, fingerprint: str) -> TakeRecord | None:
        """Return the record of the takes of a clip whose take 0 has this fingerprint; None: nothing is measured.

        Without retakes no decision depends on a measure, so a failed measurement is repeated.
        """
        if self._request.quality == "off":
            return None
        record = self._records.begin(clip.clip_index, fingerprint)
        if not self.has_retakes and any(take.measured is None for take in record.takes):
            return TakeRecord(clip_index=clip.clip_index, fingerprint=fingerprint)
        return record

    def next_take(self, clip: ClipPlan, record: TakeRecord | None) -> int:
        """Return the number of the take to make: the kept take after the decision, else the next take."""
        if record is None or not record.takes:
            return 0
        kept = self._decision(clip, record)
        return len(record.takes) if kept is None else kept

    def judge(
        self, clip: ClipPlan, record: TakeRecord | None, made: Manifest, predecessor: Manifest | None
    ) -> TakeRecord | None:
        """Measure the stored take `made` unless the record has it, decide, and store the record if it has changed.

        `clip` has the seed of the take.
        """
        if record is None:
            return None
        known = record
        take = None
        if made.fingerprint not in {taken.fingerprint for taken in record.takes}:
            take = self._measurer.take(clip, len(record.takes), made, predecessor)
            look = self._measurer.reference if take.measured else record.reference
            record = record.model_copy(update={"takes": (*record.takes, take), "reference": look})
        record = record.model_copy(update={"kept": self._decision(clip, record)})
        if record != known:
            self._records.write(record)
        if take is not None:
            self._report(record, take)
        return record

    def check(self, clip: ClipPlan, record: TakeRecord | None) -> None:
        """Raise PermanentError if the kept take fails and the request says `after_retakes: stop`."""
        kept = record.kept_take if record else None
        if record is None or kept is None or not kept.fails or not self.has_retakes:
            return
        problems = "; ".join(finding.message for finding in kept.findings if finding.level == "fail")
        if self._request.after_retakes == "stop":
            raise PermanentError(
                f"Clip {clip.clip_index} fails the quality gate in all {len(record.takes)} takes. The best one, take "
                f"{kept.take}: {problems}. See clips/{clip.clip_index:04d}/clip.mp4; then start the job again with "
                f"after_retakes keep_best or more retakes, or rerun it from clip {clip.clip_index} with another prompt."
            )
        log.get_logger().warning("retakes_used_up", kept=kept.take, num_takes=len(record.takes), problems=problems)

    def check_decided(self, predecessor: Manifest) -> None:
        """Raise TransientError unless the takes of the previous clip are decided and its clip is the kept take."""
        if self.has_retakes and self._records.kept(predecessor) is None:
            index = predecessor.clip_index
            raise TransientError(
                f"Clip {index} has no chosen take yet: expected one in "
                f"{self._ctx.layout.clip_quality(index or 0)}. "
                f"Run `s2v {RENDER_CLIP.command} --clip-index {index}` for this job first."
            )

    def _decision(self, clip: ClipPlan, record: TakeRecord) -> int | None:
        kept = decide(record.takes, self._request.max_retakes if self.has_retakes else 0)
        if kept is None and not can_afford_retake(self._ctx, self._plan, clip, self._request):
            return best(record.takes)
        return kept

    def _report(self, record: TakeRecord, take: Take) -> None:
        detail: dict[str, Any] = {
            "take": take.take,
            "kept": record.kept,
            "seconds": take.measure_seconds,
            "findings": [f"{finding.level}: {finding.message}" for finding in take.findings],
        }
        if take.error is not None:
            detail["error"] = take.error
        self._ctx.metadata.events.record(
            self._ctx.job_id,
            JobEvent.CLIP_MEASURED,
            clip_index=record.clip_index,
            detail=detail,
        )
