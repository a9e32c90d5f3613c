"""render_clip: one clip of the plan, on the processes of one torchrun.

Writes clips/<k>/{clip.mp4, motion.safetensors, manifest.json}; the last clip of a chain leaves no motion state. A clip
whose fingerprint is there already is reused, so nothing that was paid for is computed twice.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from s2v_tasks import log
from s2v_tasks.engine.images import fit_pose
from s2v_tasks.engine.loading import Snapshot, snapshot_id
from s2v_tasks.engine.pipeline import ClipInputs, MotionState, S2VPipeline, Sampling, motion_frames_needed
from s2v_tasks.engine.worker import Worker, open_worker
from s2v_tasks.errors import ConfigurationError, PermanentError, S2VError, TransientError
from s2v_tasks.media.encode import encode_clip
from s2v_tasks.media.frames import read_frames
from s2v_tasks.schemas.manifest import Artifact, Manifest, fingerprint
from s2v_tasks.schemas.plan import FPS, ClipPlan, Plan
from s2v_tasks.steps.context import StepContext
from s2v_tasks.storage.artifacts import Built, OutputFile

REVISION = 1  # raise it when the engine or the encoding profile would give other bytes for the same inputs
PROGRESS_SECONDS = 2.0  # at most one progress line and one row update in this time


def run(ctx: StepContext, *, clip_index: int) -> dict[str, Any]:
    worker = open_worker(ctx.settings.device)
    plan = ctx.plan()
    if clip_index >= plan.num_clip:
        raise PermanentError(f"clip_index {clip_index}: expected 0 to {plan.num_clip - 1}, the clips of the plan.")
    if ctx.settings.snapshot_path is None:
        raise ConfigurationError("S2V_SNAPSHOT_PATH is not set: expected the folder with the model weights.")
    snapshot = Snapshot.open(ctx.settings.snapshot_path)
    inputs = _inputs(ctx, plan)
    prints = clip_fingerprints(plan, {name: item.sha256 for name, item in inputs.items()}, snapshot_id(snapshot.path))
    clip = plan.clips[clip_index]
    predecessor = _predecessor(ctx, clip, prints)
    if predecessor is not None:
        inputs["motion"] = predecessor.outputs["motion"]

    def build(folder: Path) -> Built:
        ctx.ledger.clip_started(ctx.job_id, clip_index, fingerprint=prints[clip_index])
        return _render(ctx, plan, clip, (snapshot, worker, inputs), folder)

    started = time.monotonic()
    try:
        reused = ctx.produce(
            step="render_clip",
            clip_index=clip_index,
            manifest_key=ctx.layout.clip_manifest(clip_index),
            fingerprint=prints[clip_index],
            inputs=inputs,
            build=build,
        ).reused
    except Exception as error:
        with _tolerated("clip_failure_not_recorded"):
            ctx.ledger.clip_failed(ctx.job_id, clip_index, str(error))
        raise
    ctx.ledger.clip_succeeded(
        ctx.job_id, clip_index, render_seconds=0.0 if reused else time.monotonic() - started, reused=reused
    )
    return {"clip_index": clip_index, "reused": reused}


def clip_fingerprints(plan: Plan, inputs: dict[str, str], snapshot: str) -> list[str]:
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


def _render(
    ctx: StepContext, plan: Plan, clip: ClipPlan, source: tuple[Snapshot, Worker, dict[str, Artifact]], folder: Path
) -> Built:
    snapshot, worker, inputs = source
    paths = {}
    for name, artifact in inputs.items():
        paths[name] = folder / Path(artifact.key).name
        ctx.artifacts.fetch(artifact, paths[name])
    load_started = time.monotonic()
    pipeline = S2VPipeline.from_snapshot(snapshot, worker.device)
    load_seconds = time.monotonic() - load_started
    render_started = time.monotonic()
    sampling = plan.sampling
    output = pipeline.render_clip(
        _clip_inputs(plan, clip, paths),
        Sampling(sampling.sample_steps, sampling.sample_guide_scale, sampling.sample_shift, sampling.sample_solver),
        on_step=Progress(ctx, plan, clip),
    )
    render_seconds = time.monotonic() - render_started
    encode_clip(output.frames_u8[: clip.num_frames], folder / "clip.mp4", fps=FPS)
    outputs = {"clip": OutputFile(folder / "clip.mp4", ctx.layout.clip(clip.clip_index), "video/mp4")}
    if output.motion is not None:
        path = folder / "motion_out.safetensors"
        save_file({"latents": output.motion.latents.contiguous(), "frames": output.motion.frames.contiguous()}, path)
        outputs["motion"] = OutputFile(path, ctx.layout.motion(clip.clip_index), "application/octet-stream")
    return Built(
        outputs,
        facts={
            "device": str(worker.device),
            "world_size": worker.world_size,
            "load_seconds": round(load_seconds, 3),
            "render_seconds": round(render_seconds, 3),
            "start_frame": clip.start_frame,
            "end_frame": clip.end_frame,
            "infer_frames": clip.infer_frames,
            "tokens": clip.tokens,
        },
    )


def _clip_inputs(plan: Plan, clip: ClipPlan, paths: dict[str, Path]) -> ClipInputs:
    """What the engine needs of this clip, as tensors."""
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


@contextmanager
def _tolerated(event: str) -> Iterator[None]:
    """A database that is away costs a note, not the hours of a render nor the true reason of its failure."""
    try:
        yield
    except S2VError as error:
        log.get_logger().warning(event, error=str(error))


class Progress:
    """One line for people and one row for `s2v job` as the solver steps of a clip go by."""

    def __init__(self, ctx: StepContext, plan: Plan, clip: ClipPlan) -> None:
        self._ctx, self._plan, self._clip = ctx, plan, clip
        self._started = self._reported = time.monotonic()

    def __call__(self, step: int, num_steps: int) -> None:
        """Called after solver step `step` (from 1) of `num_steps`."""
        now = time.monotonic()
        if step < num_steps and now - self._reported < PROGRESS_SECONDS:
            return
        self._reported = now
        eta = (now - self._started) / step * (num_steps - step)
        index, total = self._clip.clip_index + 1, self._plan.num_clip
        log.get_logger().info(
            f"clip {index}/{total} step {step}/{num_steps} eta {int(eta) // 60:02d}:{int(eta) % 60:02d}"
        )
        with _tolerated("progress_not_recorded"):
            self._ctx.ledger.clip_progress(self._ctx.job_id, self._clip.clip_index, step=step, num_steps=num_steps)
