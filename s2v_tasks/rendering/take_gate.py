"""The gate: measure each take of a clip, and decide which one the next clip continues (ADR 19).

State is `clips/<k>/quality.json` alone. A take is measured after it is durable and recorded after it is measured; the
next one is rendered after that. `kept` is written before the kept take becomes the clip again.
"""

from typing import Any

from s2v_tasks import log
from s2v_tasks.errors import PermanentError, TransientError
from s2v_tasks.rendering.measuring import ClipMeasurer
from s2v_tasks.rendering.takes import best, can_afford_retake, decide
from s2v_tasks.runtime.context import StepContext
from s2v_tasks.schemas.events import JobEvent
from s2v_tasks.schemas.manifest import Manifest
from s2v_tasks.schemas.plan import ClipPlan, Plan
from s2v_tasks.schemas.quality import Take, TakeRecord
from s2v_tasks.schemas.request import Request
from s2v_tasks.schemas.steps import RENDER_CLIP
from s2v_tasks.storage.take_records import TakeRecords


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
        """Return what is known of the takes of a clip whose take 0 has this fingerprint; None: nothing is measured.

        Without retakes nothing depends on a measure, and one that failed is tried again.
        """
        if self._request.quality == "off":
            return None
        record = self._records.begin(clip.clip_index, fingerprint)
        if not self.has_retakes and any(take.measured is None for take in record.takes):
            return TakeRecord(clip_index=clip.clip_index, fingerprint=fingerprint)
        return record

    def next_take(self, clip: ClipPlan, record: TakeRecord | None) -> int:
        """Return the number of the take to make: the kept one once that is decided, else the next one."""
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
                f"{kept.take}: {problems}. Look at clips/{clip.clip_index:04d}/clip.mp4; then start the job again with "
                f"after_retakes keep_best or more retakes, or rerun it from clip {clip.clip_index} with another prompt."
            )
        log.get_logger().warning("retakes_used_up", kept=kept.take, num_takes=len(record.takes), problems=problems)

    def check_decided(self, predecessor: Manifest) -> None:
        """Raise TransientError while the takes of the clip before are not decided, or another one than its clip is."""
        if self.has_retakes and self._records.kept(predecessor) is None:
            index = predecessor.clip_index
            raise TransientError(
                f"Clip {index} is not decided: expected a kept take in {self._ctx.layout.clip_quality(index or 0)}. "
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
