"""What each rank of render_clip does: load the networks once, render the clips that the leader orders."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file

from s2v_tasks.engine import check_compile_cache
from s2v_tasks.engine.clip import ClipInputs, MotionState, Sampling, TakeFrames, motion_frames_needed
from s2v_tasks.engine.images import fit_pose
from s2v_tasks.engine.loading import Snapshot
from s2v_tasks.engine.models.attention_kernels import kernel_name
from s2v_tasks.engine.options import EngineOptions
from s2v_tasks.engine.pipeline import S2VPipeline
from s2v_tasks.engine.resume import DenoiseState
from s2v_tasks.engine.worker import Worker, load_pipeline, made_with, vae_precision
from s2v_tasks.media.frames import read_frames
from s2v_tasks.schemas.plan import ClipPlan, Plan


@dataclass(frozen=True)
class Order:
    """A clip to render; the files are on the disk that the ranks share."""

    plan: Plan
    clip: ClipPlan
    snapshot: Snapshot
    paths: dict[str, Path]  # conditions, and where they exist: pose, motion, state
    options: EngineOptions
    parallel_layout: str


class Renderer:
    """One rank's share of the networks: loaded for the first clip that is missing, kept for those after it."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._pipeline: S2VPipeline | None = None
        self.facts: dict[str, Any] = {}  # how the networks run, once they are loaded

    def render(self, order: Order, take: TakeFrames, on_step: Callable[[int, int], None]) -> MotionState | None:
        """Render the clip, from its state where there is one; all ranks call it with the same order.

        `take` and `on_step` are told of frames and solver steps as they are made, see `S2VPipeline.stream_clip`.
        """
        sampling = order.plan.sampling
        return self.load(order).stream_clip(
            _clip_inputs(order),
            Sampling(
                sampling.sample_steps,
                sampling.sample_guide_scale,
                sampling.sample_shift,
                sampling.sample_solver,
                order.options.noise_device,
                order.options.step_cache,
            ),
            take,
            on_step,
            state=self.saved_state(order),
            interrupted=self._worker.interrupted,
        )

    def load(self, order: Order) -> S2VPipeline:
        """The networks; all ranks call it with the same order."""
        if self._pipeline is not None:
            return self._pipeline
        if order.options.compiled:
            check_compile_cache()
        started = time.monotonic()
        guided = order.plan.sampling.sample_guide_scale > 1
        self._pipeline, layout = load_pipeline(
            self._worker, order.snapshot, order.parallel_layout, order.options, guided=guided
        )
        self.facts = {
            "device": self._worker.device.type,
            "world_size": self._worker.world_size,
            "parallel_layout": str(layout),
            "precision": str(self._pipeline.dtype).removeprefix("torch."),
            **asdict(order.options),
            "vae_precision": vae_precision(self._worker.device, order.options.vae_precision),
            "attention": kernel_name(order.options.attention, self._worker.device),
            **made_with(self._worker.device),
            "load_seconds": round(time.monotonic() - started, 3),
        }
        return self._pipeline

    def saved_state(self, order: Order) -> DenoiseState | None:
        """Where the clip goes on; None where it begins at the first step. The networks are loaded."""
        path = order.paths.get("state")
        return None if path is None else DenoiseState.load(path, self.name)

    @property
    def name(self) -> str:
        """What decides about the bytes beside the inputs: a saved state is continued by the same alone."""
        names = ("device", "device_model", "parallel_layout", "attention", "torch_version", "cudnn_version")
        return " ".join(str(self.facts[name]) for name in names if name in self.facts)

    def clip_facts(self) -> dict[str, Any]:
        """How the latest clip was rendered; all ranks call it."""
        share = {} if self._pipeline is None else {"skipped_share": round(self._pipeline.skipped_share, 4)}
        return self.facts | share | self._worker.largest(self._worker.peak_memory_bytes())


def frames_to_keep(plan: Plan, clip: ClipPlan) -> int | None:
    """How many pixel frames the motion state must carry for the rest of the chain; None: nobody follows."""
    later = []
    successor = clip.successor
    while successor is not None:
        later.append(plan.clips[successor].infer_frames)
        successor = plan.clips[successor].successor
    return motion_frames_needed(later) if later else None


def _clip_inputs(order: Order) -> ClipInputs:
    """What the engine needs of this clip, as tensors."""
    plan, clip, paths = order.plan, order.clip, order.paths
    rendered_end = clip.start_frame + clip.infer_frames
    with safe_open(paths["conditions"], framework="pt") as conditions:
        # Of the speech of a long video only what this clip hears.
        audio = conditions.get_slice("audio")[clip.start_frame : rendered_end]
        whole = {name: conditions.get_tensor(name) for name in ("reference_u8", "context", "context_null")}
    motion = None
    if "motion" in paths:
        state = load_file(paths["motion"])
        motion = MotionState(latents=state["latents"], frames=state["frames"])
    pose = None
    if "pose" in paths:
        frames = read_frames(paths["pose"], start_frame=clip.start_frame, end_frame=rendered_end)
        pose = fit_pose(frames, plan.width, plan.height, compat="corrected")
    return ClipInputs(
        **whole,
        audio=audio,
        pose=pose,
        seed=clip.seed,
        motion=motion,
        start_from_ref=plan.sampling.start_from_ref,
        keep_motion_frames=frames_to_keep(plan, clip),
    )
