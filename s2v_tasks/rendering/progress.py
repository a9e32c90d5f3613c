"""Progress of a clip while it is rendered, and its facts afterwards."""

import time
from collections.abc import Callable
from typing import Any

from s2v_tasks import log
from s2v_tasks.runtime.context import StepContext, tolerated
from s2v_tasks.schemas.manifest import ClipFacts
from s2v_tasks.schemas.model_card import GpuCard, load_gpu_card
from s2v_tasks.schemas.plan import ClipPlan, Plan
from s2v_tasks.settings import Settings, config_dir

PROGRESS_SECONDS = 2.0  # at most one progress line and one row update in this time


def clip_facts(settings: Settings, clip: ClipPlan, engine_facts: dict[str, Any], render_seconds: float) -> ClipFacts:
    """Return the facts of a rendered clip, for its manifest and the database.

    `mfu` is omitted if `S2V_GPU` does not state the peak of the device, or if operations were skipped.
    """
    facts = ClipFacts(
        **engine_facts,
        start_frame=clip.start_frame,
        end_frame=clip.end_frame,
        infer_frames=clip.infer_frames,
        tokens=clip.tokens,
        pflops=clip.pflops,
        render_seconds=round(render_seconds, 3),
    )
    card = load_gpu_card(config_dir(settings), settings.gpu)
    peak = peak_flops_per_second(card, str(facts.device), str(facts.precision), facts.world_size)
    if peak is None or facts.skipped_share:
        return facts
    mfu = round(clip.pflops * 1e15 / (render_seconds * peak), 4)
    return facts.model_copy(update={"gpu": card.name, "mfu": mfu})


def peak_flops_per_second(card: GpuCard, device: str, precision: str, world_size: int) -> float | None:
    """Return the peak FLOPS of all GPUs for the dtype of the weights.

    None on a CPU, whose peak is unknown, and for a card that does not describe a GPU.
    """
    if card.name == "cpu" or device == "cpu":
        return None
    return world_size * (card.fp32_tflops if precision == "float32" else card.bf16_tflops) * 1e12


class Progress:
    """Reports solver steps of a clip: a log line for people, and a row of the metadata store for `s2v job`."""

    def __init__(
        self, ctx: StepContext, plan: Plan, clip: ClipPlan, peak_memory_bytes: Callable[[], dict[str, int]]
    ) -> None:
        self._ctx, self._plan, self._clip = ctx, plan, clip
        self._peak_memory_bytes = peak_memory_bytes
        self._started, self._reported = time.monotonic(), -PROGRESS_SECONDS  # the first step is reported
        self._first_step = 0  # of this attempt, set by the first call

    def __call__(self, step: int, num_steps: int) -> None:
        """Report solver step `step` (from 1) of `num_steps`."""
        now = time.monotonic()
        self._first_step = self._first_step or step
        if step < num_steps and now - self._reported < PROGRESS_SECONDS:
            return
        self._reported = now
        eta = (now - self._started) / (step - self._first_step + 1) * (num_steps - step)
        index, total = self._clip.clip_index + 1, self._plan.num_clip
        log.get_logger().info(
            f"clip {index}/{total} step {step}/{num_steps} eta {int(eta) // 60:02d}:{int(eta) % 60:02d}"
        )
        with tolerated("progress_not_recorded"):
            self._ctx.metadata.clips.record_progress(
                self._ctx.job_id,
                self._clip.clip_index,
                step=step,
                num_steps=num_steps,
                eta_seconds=round(eta, 1),
                gpu_memory_bytes=self._peak_memory_bytes().get("peak_gpu_memory_bytes"),
            )
