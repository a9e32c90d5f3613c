"""render_clip: one clip of the plan, on the processes of one torchrun.

Writes clips/<k>/{clip.mp4, motion.safetensors, manifest.json}; the last clip of a chain leaves no motion state. A clip
whose fingerprint is there already is reused, and one that was interrupted (SIGTERM) goes on at the solver step where it
was, so nothing that was paid for is computed twice.

Rank 0 leads: it alone reads and writes storage and database, and tells the other ranks by an `_Order` what to render.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from safetensors.torch import load_file, save_file

from s2v_tasks import log
from s2v_tasks.engine.images import fit_pose
from s2v_tasks.engine.loading import Snapshot, snapshot_id
from s2v_tasks.engine.pipeline import ClipInputs, ClipOutput, MotionState, S2VPipeline, Sampling, motion_frames_needed
from s2v_tasks.engine.resume import DenoiseState, Interrupted
from s2v_tasks.engine.worker import Worker, load_pipeline, open_worker
from s2v_tasks.errors import PermanentError, TransientError
from s2v_tasks.media.encode import encode_clip
from s2v_tasks.media.frames import read_frames
from s2v_tasks.schemas.manifest import Artifact, Manifest, fingerprint
from s2v_tasks.schemas.plan import FPS, ClipPlan, Plan
from s2v_tasks.settings import load_settings
from s2v_tasks.steps.clip_meter import Progress, clip_facts
from s2v_tasks.steps.context import StepContext, tolerated
from s2v_tasks.storage.artifacts import Built, OutputFile
from s2v_tasks.storage.partial import PartialClip

REVISION = 2  # raise it when the engine or the encoding profile would give other bytes for the same inputs


@dataclass(frozen=True)
class _Order:
    """What every rank needs to render a clip; the files are on the disk that the ranks share."""

    plan: Plan
    clip_index: int
    snapshot: Snapshot
    paths: dict[str, Path]  # conditions, and where they exist: pose, motion, state
    noise_device: Literal["run", "cpu"]
    parallel_layout: str

    @property
    def clip(self) -> ClipPlan:
        return self.plan.clips[self.clip_index]


def run(ctx: StepContext, *, clip_index: int) -> dict[str, Any]:
    """Lead the ranks through one clip."""
    with open_worker(ctx.settings.device) as worker:
        return _lead(ctx, clip_index, worker)


def follow(job_id: str) -> None:
    """What the other ranks do: render with the leader, and leave all the rest to it."""
    settings = load_settings()
    with open_worker(settings.device) as worker:
        log.bind(job_id=job_id, rank=worker.rank)
        order: _Order | None = worker.share()
        if order is None:
            return
        try:
            _render(order, _load(order, worker)[0], worker, on_step=lambda _step, _num_steps: None)
        except Interrupted as stop:
            log.get_logger().info("interrupted", step=stop.state.step)


def _lead(ctx: StepContext, clip_index: int, worker: Worker) -> dict[str, Any]:
    plan = ctx.plan()
    if clip_index >= plan.num_clip:
        raise PermanentError(f"clip_index {clip_index}: expected 0 to {plan.num_clip - 1}, the clips of the plan.")
    snapshot = Snapshot.open(ctx.snapshot_path())
    inputs = _inputs(ctx, plan)
    prints = clip_fingerprints(
        plan,
        {name: item.sha256 for name, item in inputs.items()},
        snapshot_id(snapshot.path),
        ctx.settings.noise_device,
    )
    clip = plan.clips[clip_index]
    predecessor = _predecessor(ctx, clip, prints)
    if predecessor is not None:
        inputs["motion"] = predecessor.outputs["motion"]

    partial = PartialClip(ctx.artifacts, ctx.layout, clip_index, prints[clip_index])
    order = _Order(plan, clip_index, snapshot, {}, ctx.settings.noise_device, ctx.settings.parallel_layout)

    def build(folder: Path) -> Built:
        ctx.ledger.clip_started(ctx.job_id, clip_index, fingerprint=prints[clip_index])
        return _build(ctx, order, inputs, (worker, partial), folder)

    try:
        manifest, reused = ctx.produce(
            step="render_clip",
            clip_index=clip_index,
            manifest_key=ctx.layout.clip_manifest(clip_index),
            fingerprint=prints[clip_index],
            inputs=inputs,
            build=build,
        )
    except Exception as error:
        with tolerated("clip_failure_not_recorded"):
            ctx.ledger.clip_failed(ctx.job_id, clip_index, str(error))
        raise
    partial.drop()
    ctx.ledger.clip_succeeded(ctx.job_id, clip_index, facts=manifest.facts, reused=reused)
    return {"clip_index": clip_index, "reused": reused}


def clip_fingerprints(plan: Plan, inputs: dict[str, str], snapshot: str, noise_device: str) -> list[str]:
    """Fingerprint of each clip: its frames and seed, all that it is made from, and the clip before it in its chain.

    `inputs` maps the names of the artifacts that every clip reads (conditions, pose) to their SHA-256.
    """
    prints: list[str] = []
    for clip in plan.clips:
        prints.append(
            fingerprint(
                "render_clip",
                REVISION,
                snapshot,
                inputs,
                noise_device,
                plan.sampling.model_dump(),
                [plan.width, plan.height],
                [clip.clip_index, clip.infer_frames, clip.start_frame, clip.end_frame, clip.seed],
                _frames_to_keep(plan, clip),
                None if clip.predecessor is None else prints[clip.predecessor],
            )
        )
    return prints


def _frames_to_keep(plan: Plan, clip: ClipPlan) -> int | None:
    """How many pixel frames the motion state must carry for the rest of the chain; None: nobody follows."""
    later = []
    successor = clip.successor
    while successor is not None:
        later.append(plan.clips[successor].infer_frames)
        successor = plan.clips[successor].successor
    return motion_frames_needed(later) if later else None


def _inputs(ctx: StepContext, plan: Plan) -> dict[str, Artifact]:
    """The artifacts that every clip of the job reads."""
    conditions = ctx.manifest(ctx.layout.conditions_manifest, made_by="encode-conditions")
    inputs = {"conditions": conditions.outputs["conditions"]}
    staged = ctx.manifest(ctx.layout.input_manifest, made_by="stage-inputs").outputs
    if "pose" in staged:
        inputs["pose"] = staged["pose"]
    return inputs


def _predecessor(ctx: StepContext, clip: ClipPlan, prints: list[str]) -> Manifest | None:
    """The manifest of the clip before, checked to be the one that this plan means."""
    if clip.predecessor is None:
        return None
    key = ctx.layout.clip_manifest(clip.predecessor)
    manifest = ctx.manifest(key, made_by=f"render-clip --clip-index {clip.predecessor}")
    if manifest.fingerprint != prints[clip.predecessor]:
        raise TransientError(
            f"{key} has fingerprint {manifest.fingerprint[:12]}: expected {prints[clip.predecessor][:12]}. "
            f"It was made from other inputs; render clip {clip.predecessor} again first."
        )
    return manifest


def _build(
    ctx: StepContext, order: _Order, inputs: dict[str, Artifact], hands: tuple[Worker, PartialClip], folder: Path
) -> Built:
    """Render and encode the clip in `folder`; TransientError when it was interrupted and its state is safe."""
    worker, partial = hands
    saved = partial.find()
    needed = inputs if saved is None else inputs | {"state": saved.outputs["state"]}
    for name, artifact in needed.items():
        order.paths[name] = folder / Path(artifact.key).name
        ctx.artifacts.fetch(artifact, order.paths[name])
    earlier_seconds = 0.0 if saved is None else float(saved.facts["render_seconds"])
    worker.share(order)

    pipeline, engine_facts = _load(order, worker)
    clip, started = order.clip, time.monotonic()
    try:
        output = _render(order, pipeline, worker, on_step=Progress(ctx, order.plan, clip))
    except Interrupted as stop:
        step, num_steps = stop.state.step, order.plan.sampling.sample_steps
        if step:
            stop.state.save(folder / "interrupted.safetensors")
            facts = {"render_seconds": earlier_seconds + time.monotonic() - started}
            partial.save(folder / "interrupted.safetensors", step=step, facts=facts)
        raise TransientError(
            f"clip {clip.clip_index} was interrupted after solver step {step} of {num_steps}: "
            "the next attempt goes on there."
        ) from stop
    engine_facts |= worker.peak_memory_bytes()
    render_seconds = earlier_seconds + time.monotonic() - started
    encode_clip(output.frames_u8[: clip.num_frames], folder / "clip.mp4", fps=FPS)
    outputs = {"clip": OutputFile(folder / "clip.mp4", ctx.layout.clip(clip.clip_index), "video/mp4")}
    if output.motion is not None:
        path = folder / "motion_out.safetensors"
        save_file({"latents": output.motion.latents.contiguous(), "frames": output.motion.frames.contiguous()}, path)
        outputs["motion"] = OutputFile(path, ctx.layout.motion(clip.clip_index), "application/octet-stream")
    return Built(outputs, facts=clip_facts(ctx.settings, clip, engine_facts, render_seconds))


def _load(order: _Order, worker: Worker) -> tuple[S2VPipeline, dict[str, Any]]:
    """The networks, shared by all ranks, and the facts of how they run."""
    started = time.monotonic()
    guided = order.plan.sampling.sample_guide_scale > 1
    pipeline, layout = load_pipeline(worker, order.snapshot, order.parallel_layout, guided=guided)
    return pipeline, {
        "device": worker.device.type,
        "world_size": worker.world_size,
        "parallel_layout": str(layout),
        "precision": str(pipeline.dtype).removeprefix("torch."),
        "attention": "sdpa",
        "noise_device": order.noise_device,
        "load_seconds": round(time.monotonic() - started, 3),
    }


def _render(order: _Order, pipeline: S2VPipeline, worker: Worker, on_step: Callable[[int, int], None]) -> ClipOutput:
    """Render the clip, on every rank, from its state where there is one."""
    sampling = order.plan.sampling
    return pipeline.render_clip(
        _clip_inputs(order),
        Sampling(
            sampling.sample_steps,
            sampling.sample_guide_scale,
            sampling.sample_shift,
            sampling.sample_solver,
            order.noise_device,
        ),
        on_step=on_step,
        state=DenoiseState.load(order.paths["state"]) if "state" in order.paths else None,
        interrupted=worker.interrupted,
    )


def _clip_inputs(order: _Order) -> ClipInputs:
    """What the engine needs of this clip, as tensors."""
    plan, clip, paths = order.plan, order.clip, order.paths
    conditions = load_file(paths["conditions"])
    rendered_end = clip.start_frame + clip.infer_frames
    motion = None
    if "motion" in paths:
        state = load_file(paths["motion"])
        motion = MotionState(latents=state["latents"], frames=state["frames"])
    pose = None
    if "pose" in paths:
        frames = read_frames(paths["pose"], start_frame=clip.start_frame, end_frame=rendered_end)
        pose = fit_pose(frames, plan.width, plan.height, compat="corrected")
    return ClipInputs(
        reference_u8=conditions["reference_u8"],
        context=conditions["context"],
        context_null=conditions["context_null"],
        audio=conditions["audio"][clip.start_frame : rendered_end],
        pose=pose,
        seed=clip.seed,
        motion=motion,
        start_from_ref=plan.sampling.start_from_ref,
        keep_motion_frames=_frames_to_keep(plan, clip),
    )
