"""The renderer of each rank: it loads the networks once and renders the clips that the leader orders.

Followers (ranks other than 0) only render: they do not use storage or metadata.
"""

import time
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file

from s2v_tasks import log
from s2v_tasks.engine import check_compile_cache
from s2v_tasks.engine.clip import Callbacks, ClipInputs, MotionState, Sampling
from s2v_tasks.engine.denoising import DenoiseState, Interrupted
from s2v_tasks.engine.images import fit_pose
from s2v_tasks.engine.loading import Snapshot
from s2v_tasks.engine.loading.adapters import Adapter
from s2v_tasks.engine.loading.networks import load_pipeline, made_with, vae_precision
from s2v_tasks.engine.models.attention import kernel_name
from s2v_tasks.engine.options import EngineOptions
from s2v_tasks.engine.pipeline import NO_CALLBACKS, S2VPipeline
from s2v_tasks.engine.worker import Worker, explained_gpu_memory, open_worker
from s2v_tasks.errors import ConfigurationError
from s2v_tasks.media.frames import read_frames
from s2v_tasks.rendering.fingerprints import frames_to_keep
from s2v_tasks.runtime.cancellation import cancellable
from s2v_tasks.schemas.model_card import load_adapter_cards
from s2v_tasks.schemas.plan import ClipPlan, Plan
from s2v_tasks.settings import Settings, config_dir, load_settings

_MORE_GPU_MEMORY = (
    "Use a smaller size or fewer infer_frames, S2V_OFFLOAD=blocks, or more GPUs for a clip (S2V_NPROC_PER_NODE); and "
    "compare S2V_GPU with this GPU, because the plan expected that the clip fits."
)


def plan_options(settings: Settings, plan: Plan) -> EngineOptions:
    """Return the options of the installation, with the step cache of the plan if it has one."""
    options = EngineOptions.of(settings)
    threshold = plan.sampling.step_cache
    return options if threshold is None else replace(options, step_cache=threshold)


def plan_adapters(settings: Settings, plan: Plan) -> tuple[Adapter, ...]:
    """Return the adapters of the plan, after checking their digests and alphas in adapters.yaml."""
    if not plan.adapters:
        return ()
    cards = load_adapter_cards(config_dir(settings))
    folder = (settings.snapshot_path or Path()).absolute().parent
    found = []
    for planned in plan.adapters:
        card = cards.get(planned.name)
        if card is None or card.sha256 != planned.sha256:
            raise ConfigurationError(
                f"adapter {planned.name} has another digest in adapters.yaml than in the plan: expected "
                f"{planned.sha256[:12]}.... Restore the entry, or rerun the job"
            )
        if card.alpha != planned.alpha:
            raise ConfigurationError(
                f"adapter {planned.name} has alpha {card.alpha} in adapters.yaml: expected {planned.alpha}, as in the "
                "plan. Restore the entry, or run plan_clips again, which renders all clips with the new value"
            )
        adapter = Adapter(card.name, folder / card.path, planned.strength, card.sha256, card.alpha, card.least_matched)
        adapter.check_file()
        found.append(adapter)
    return tuple(found)


@dataclass(frozen=True)
class Order:
    """A clip to render; its files are on the disk that the ranks share."""

    plan: Plan
    clip: ClipPlan
    snapshot: Snapshot
    paths: dict[str, Path]  # conditions, and where they exist: pose, motion, state
    options: EngineOptions
    parallel_layout: str
    adapters: tuple[Adapter, ...] = ()


class Renderer:
    """Renderer of one rank: it loads its shard of the networks for the first missing clip and keeps it."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._pipeline: S2VPipeline | None = None
        self._is_new = True  # has rendered no clip
        self.facts: dict[str, Any] = {}  # of the loaded networks

    def render(
        self, order: Order, state: DenoiseState | None, callbacks: Callbacks = NO_CALLBACKS
    ) -> MotionState | None:
        """Render the clip, from `state` if it is given; all ranks call it with the same order and state.

        `callbacks` get frames, solver steps and states as they are made. Raises an error of `explained_gpu_memory` if
        the memory of the GPU does not suffice.
        """
        sampling = order.plan.sampling
        pipeline = self.load(order)
        with explained_gpu_memory(_MORE_GPU_MEMORY, is_new=self._is_new):
            motion = pipeline.stream_clip(
                _clip_inputs(order),
                Sampling(
                    sample_steps=sampling.sample_steps,
                    sample_guide_scale=sampling.sample_guide_scale,
                    sample_shift=sampling.sample_shift,
                    sample_solver=sampling.sample_solver,
                    guide_steps=sampling.guide_steps,
                ),
                replace(callbacks, is_interrupted=self._worker.interrupted),
                state=state,
            )
        self._is_new = False
        return motion

    def load(self, order: Order) -> S2VPipeline:
        """Load the networks for the first clip and return them; all ranks call it with the same order."""
        if self._pipeline is not None:
            return self._pipeline
        if order.options.compiled:
            check_compile_cache()
        started = time.monotonic()
        guided = order.plan.sampling.guided_steps > 0
        with explained_gpu_memory(_MORE_GPU_MEMORY):
            self._pipeline, layout = load_pipeline(
                self._worker,
                order.snapshot,
                order.parallel_layout,
                order.options,
                guided=guided,
                adapters=order.adapters,
            )
        self.facts = {
            "device": self._worker.device.type,
            "world_size": self._worker.world_size,
            "parallel_layout": str(layout),
            "precision": str(self._pipeline.dtype).removeprefix("torch."),
            **asdict(order.options),
            "vae_precision": vae_precision(self._worker.device, order.options.vae_precision),
            "attention": kernel_name(order.options.attention, self._worker.device),
            **({"adapters": {item.name: item.strength for item in order.adapters}} if order.adapters else {}),
            **made_with(self._worker.device),
            "load_seconds": round(time.monotonic() - started, 3),
        }
        return self._pipeline

    def saved_state(self, order: Order) -> DenoiseState | None:
        """Load the networks and return the saved state of the clip; None if it begins at the first step."""
        self.load(order)
        path = order.paths.get("state")
        return None if path is None else DenoiseState.load(path, self.name)

    @property
    def name(self) -> str:
        """Return the hardware and software that affect the bytes; only an equal renderer resumes a saved state."""
        names = ("device", "device_model", "parallel_layout", "attention", "torch_version", "cudnn_version")
        return " ".join(str(self.facts[name]) for name in names if name in self.facts)

    def clip_facts(self) -> dict[str, Any]:
        """Return the facts of the latest clip from the engine; all ranks call it."""
        share = {} if self._pipeline is None else {"skipped_share": round(self._pipeline.skipped_share, 4)}
        return self.facts | share | self._worker.largest(self._worker.peak_memory_bytes())


def _clip_inputs(order: Order) -> ClipInputs:
    """Return the inputs of the engine as tensors."""
    plan, clip, paths = order.plan, order.clip, order.paths
    rendered_end = clip.start_frame + clip.infer_frames
    with safe_open(paths["conditions"], framework="pt") as conditions:
        # Only the part of the speech that belongs to this clip.
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


def open_rank(settings: Settings) -> AbstractContextManager[Worker]:
    """Open this process as one rank; followers wait for the leader during an outage of S3 and then of PostgreSQL."""
    return open_worker(settings.device, leader_waits_seconds=leader_waits_seconds(settings))


def leader_waits_seconds(settings: Settings) -> float:
    """Return the maximum seconds between two clips: one outage of S3 and one of PostgreSQL."""
    return 2.0 * settings.retry_seconds


def follow(job_id: str) -> None:
    """Render the clips that the leader orders, until it sends no more orders."""
    settings = load_settings()
    with cancellable(job_id, settings), open_rank(settings) as worker:
        log.bind(job_id=job_id, rank=worker.rank)
        renderer = Renderer(worker)
        order: Order | None = worker.share()
        while order is not None:
            log.bind(clip_index=order.clip.clip_index)
            try:
                state = renderer.saved_state(order)
                renderer.render(order, state)
                renderer.clip_facts()
            except Interrupted as stop:
                log.get_logger().info("interrupted", step=stop.state.step)
            order = worker.share()
