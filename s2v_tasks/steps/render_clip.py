"""render_clip: clips of the plan one after the other, in one process or on the processes of one torchrun.

Writes clips/<k>/{clip.mp4, motion.safetensors, manifest.json}; the last clip of a chain leaves no motion state. A clip
is durable before the next one begins. A clip whose fingerprint is there already is reused, and one that was interrupted
(SIGTERM) goes on at the solver step where it was, so nothing that was paid for is computed twice. A clip that cannot be
stored or put on record waits for S3 and PostgreSQL, with its GPU held and counted; see `runtime.outages`.

Rank 0 leads: it alone reads and writes storage and database, and tells the other ranks by an `Order` what to render.
"""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import save_file

from s2v_tasks import log
from s2v_tasks.engine.loading import snapshot_id
from s2v_tasks.engine.options import EngineOptions
from s2v_tasks.engine.resume import Interrupted
from s2v_tasks.engine.worker import Worker, open_worker
from s2v_tasks.errors import PermanentError, TransientError
from s2v_tasks.media.background import background_consumer
from s2v_tasks.media.encode import encode_clip, encoder_build
from s2v_tasks.metadata.attempts import rendering
from s2v_tasks.rendering.order import Order, Renderer, frames_to_keep
from s2v_tasks.rendering.progress import Progress, clip_facts
from s2v_tasks.runtime.attempts import await_earlier_attempt, metered
from s2v_tasks.runtime.cancellation import cancellable
from s2v_tasks.runtime.context import StepContext, tolerated
from s2v_tasks.runtime.requirements import open_snapshot
from s2v_tasks.schemas.facts import ClipFacts, PartialClipFacts
from s2v_tasks.schemas.job import AttemptOutcome
from s2v_tasks.schemas.manifest import Artifact, Manifest, fingerprint
from s2v_tasks.schemas.plan import FPS, ClipPlan, Plan
from s2v_tasks.schemas.steps import ENCODE_CONDITIONS, RENDER_CLIP, STAGE_INPUTS
from s2v_tasks.settings import Settings, load_settings
from s2v_tasks.storage.artifacts import Built, OutputFile, Work
from s2v_tasks.storage.partial_clips import PartialClip

if TYPE_CHECKING:
    from torch import Tensor

REVISION = 5  # raise it when the engine or the encoding profile would give other bytes for the same inputs


class ClipInterruptedError(TransientError):
    """The process was asked to end; what it had done of the clip is saved."""


def run(ctx: StepContext, *, clip_index: int, count: int = 1) -> dict[str, Any]:
    """Lead the ranks through `count` clips from `clip_index` on; `reused` says whether all were there already."""
    with open_worker(ctx.settings.device, leader_waits_seconds=_waits_seconds(ctx.settings)) as worker:
        ctx.retry_policy.asked_to_end = lambda: worker.asked_to_end
        leader = _Leader(ctx, worker)
        reused = [leader.render(clip) for clip in leader.clips(clip_index, count)]
    return {"clip_index": clip_index, "count": count, "reused": all(reused)}


def follow(job_id: str) -> None:
    """What the other ranks do: render with the leader, and leave all the rest to it."""
    settings = load_settings()
    waits_seconds = _waits_seconds(settings)
    with (
        cancellable(job_id, settings),
        open_worker(settings.device, leader_waits_seconds=waits_seconds) as worker,
    ):
        log.bind(job_id=job_id, rank=worker.rank)
        renderer = Renderer(worker)
        order: Order | None = worker.share()
        while order is not None:
            log.bind(clip_index=order.clip.clip_index)
            try:
                renderer.render(order, take=lambda _frames: None, on_step=lambda _step, _num_steps: None)
                renderer.clip_facts()
            except Interrupted as stop:
                log.get_logger().info("interrupted", step=stop.state.step)
            order = worker.share()


def clip_fingerprints(
    plan: Plan, inputs: dict[str, str], snapshot: str, options: EngineOptions, encoder: str
) -> list[str]:
    """Fingerprint of each clip: its frames and seed, all that it is made from, and the clip before it in its chain.

    `inputs` maps the names of the artifacts that every clip reads (conditions, pose) to their SHA-256, `encoder` is the
    build that encodes the clips. Clips that a rerun inherited keep their fingerprints.
    """
    prints = [clip.fingerprint for clip in plan.inherited]
    for clip in plan.clips[len(prints) :]:
        prints.append(
            fingerprint(
                RENDER_CLIP.name,
                REVISION,
                snapshot,
                inputs,
                options.for_fingerprint(),
                encoder,
                plan.sampling.model_dump(),
                [plan.width, plan.height],
                [clip.clip_index, clip.infer_frames, clip.start_frame, clip.end_frame, clip.seed],
                frames_to_keep(plan, clip),
                None if clip.predecessor is None else prints[clip.predecessor],
                *([clip.fades] if any(clip.fades) else []),
            )
        )
    return prints


class _Leader:
    """Rank 0 at work on the clips of a job: finds what is there, and has the ranks render what is missing."""

    def __init__(self, ctx: StepContext, worker: Worker) -> None:
        self._ctx, self._worker = ctx, worker
        self._plan = ctx.plan()
        self._snapshot = open_snapshot(ctx.settings, self._plan.model)
        self._inputs = _inputs(ctx)
        self._options = EngineOptions.of(ctx.settings)
        self._prints = clip_fingerprints(
            self._plan,
            {name: item.sha256 for name, item in self._inputs.items()},
            snapshot_id(self._snapshot.path),
            self._options,
            encoder_build(),
        )
        self._renderer = Renderer(worker)
        self._fetched: dict[str, Path] = {}  # of the inputs of all clips, what is on disk

    def clips(self, first: int, count: int) -> tuple[ClipPlan, ...]:
        """`count` clips of the plan from `first` on; PermanentError where the plan has fewer."""
        num_clip = self._plan.num_clip
        if first + count > num_clip:
            wanted = f"clip_index {first}" + (f" with count {count}" if count > 1 else "")
            raise PermanentError(f"{wanted}: expected clips within 0 to {num_clip - 1}, those of the plan.")
        return self._plan.clips[first : first + count]

    def render(self, clip: ClipPlan) -> bool:
        """Make the clip durable; whether it was so already."""
        ctx, index = self._ctx, clip.clip_index
        log.bind(clip_index=index)
        await_earlier_attempt(ctx, rendering(index))
        inputs = dict(self._inputs)
        predecessor = self._predecessor(clip)
        if predecessor is not None:
            inputs["motion"] = predecessor.outputs["motion"]
        saved_clip = PartialClip(ctx.artifacts, ctx.layout, index, self._prints[index])
        with ExitStack() as until_recorded:

            def build(folder: Path) -> Built:
                world_size = self._worker.world_size
                ctx.metadata.clips.start(ctx.job_id, index, fingerprint=self._prints[index], world_size=world_size)
                # Not only while it is rendered: the GPU is held until the clip is stored, however long S3 is away.
                until_recorded.enter_context(metered(ctx, rendering(index)))
                return self._build(clip, inputs, saved_clip, folder)

            try:
                manifest_key, made_from = ctx.layout.clip_manifest(index), self._prints[index]
                work = Work(RENDER_CLIP, ctx.job_id, manifest_key, made_from, inputs, clip_index=index)
                manifest, reused = ctx.produce(work, build)
            except Exception as error:
                self._record_failure(index, error)
                raise
            saved_clip.drop()
            ctx.metadata.clips.succeed(
                ctx.job_id, index, facts=manifest.facts.model_dump(mode="json"), reused=reused, made_at=manifest.made_at
            )
        return reused

    def _record_failure(self, index: int, error: Exception) -> None:
        """End the attempt: interrupted, not failed, where the next one need not do its work again."""
        is_kept = isinstance(error, ClipInterruptedError) or self._ctx.artifacts.kept.has(
            self._ctx.job_id, self._prints[index]
        )
        outcome = AttemptOutcome.INTERRUPTED if is_kept else AttemptOutcome.FAILED
        with tolerated("clip_failure_not_recorded"):
            self._ctx.metadata.clips.fail(self._ctx.job_id, index, str(error), outcome=outcome)

    def _predecessor(self, clip: ClipPlan) -> Manifest | None:
        """The manifest of the clip before, checked to be the one that this plan means."""
        if clip.predecessor is None:
            return None
        key = self._ctx.layout.clip_manifest(clip.predecessor)
        manifest = self._ctx.clip_manifest(clip.predecessor)
        expected = self._prints[clip.predecessor]
        if manifest.fingerprint != expected:
            raise TransientError(
                f"{key} has fingerprint {manifest.fingerprint[:12]}: expected {expected[:12]}. It was made "
                f"{_difference(manifest)}; render clip {clip.predecessor} again first."
            )
        return manifest

    def _build(self, clip: ClipPlan, inputs: dict[str, Artifact], saved_clip: PartialClip, folder: Path) -> Built:
        """Render and encode the clip in `folder`; TransientError when it was interrupted and its state is safe."""
        ctx = self._ctx
        saved = saved_clip.find()
        needed = inputs if saved is None else inputs | {"state": saved.outputs["state"]}
        order = Order(
            self._plan,
            clip,
            self._snapshot,
            self._fetch(needed, folder),
            self._options,
            ctx.settings.parallel_layout,
        )
        self._worker.share(order)
        self._renderer.load(order)
        goes_on = saved is not None and self._renderer.saved_state(order) is not None
        earlier_seconds = saved.facts_as(PartialClipFacts).render_seconds if saved and goes_on else 0.0
        started = time.monotonic()
        try:
            progress = Progress(ctx, self._plan, clip, self._worker.peak_memory_bytes)
            with background_consumer(partial(_encode, clip, folder / "clip.mp4")) as take:
                motion = self._renderer.render(order, take, on_step=progress)
                render_seconds = earlier_seconds + time.monotonic() - started
        except Interrupted as stop:
            self._worker.done()
            step, num_steps = stop.state.step, self._plan.sampling.sample_steps
            if step:
                stop.state.save(folder / "interrupted.safetensors", self._renderer.name)
                seconds = earlier_seconds + time.monotonic() - started
                facts = PartialClipFacts(solver_step=step, render_seconds=seconds)
                saved_clip.save(folder / "interrupted.safetensors", facts)
            raise ClipInterruptedError(
                f"clip {clip.clip_index} was interrupted after solver step {step} of {num_steps}: "
                "the next attempt goes on there."
            ) from stop
        engine_facts = self._renderer.clip_facts()
        self._worker.done()
        outputs = {"clip": OutputFile(folder / "clip.mp4", ctx.layout.clip(clip.clip_index), "video/mp4")}
        if motion is not None:
            path = folder / "motion_out.safetensors"
            save_file({"latents": motion.latents.contiguous(), "frames": motion.frames.contiguous()}, path)
            outputs["motion"] = OutputFile(path, ctx.layout.motion(clip.clip_index), "application/octet-stream")
        made = {"plan_digest": self._plan.digest_of(clip), "encoder": encoder_build()}
        return Built(outputs, clip_facts(ctx.settings, clip, engine_facts, render_seconds).model_copy(update=made))

    def _fetch(self, needed: dict[str, Artifact], folder: Path) -> dict[str, Path]:
        """The files that a clip needs: what all clips read stays on disk, the rest goes into the clip's `folder`."""
        paths = {}
        for name, artifact in needed.items():
            is_shared = name in self._inputs
            path = (self._ctx.work_dir if is_shared else folder) / Path(artifact.key).name
            paths[name] = self._fetched.get(name) or self._ctx.artifacts.fetch(artifact, path)
            if is_shared:
                self._fetched[name] = path
        return paths


def _waits_seconds(settings: Settings) -> float:
    """How long the leader may wait between two clips, at most: for S3, and after it for PostgreSQL."""
    return 2.0 * settings.retry_seconds


def _encode(clip: ClipPlan, path: Path, pieces: "Iterator[Tensor]") -> None:
    """Encode the frames that the clip stores, as they come; of the last clip a few more were rendered."""
    frames = (frame for piece in pieces for frame in piece.cpu().numpy())
    encode_clip(islice(frames, clip.stored_frames), path, fps=FPS, key_frame=clip.fade_in_frames)


def _difference(made: Manifest) -> str:
    """Say how a clip of another fingerprint was made otherwise than this process would make it."""
    theirs, ours = made.facts_as(ClipFacts).encoder, encoder_build()
    return "from other inputs" if theirs in {None, ours} else f"by the encoder {theirs}, and here is {ours}"


def _inputs(ctx: StepContext) -> dict[str, Artifact]:
    """The artifacts that every clip of the job reads."""
    conditions = ctx.manifest(ctx.layout.conditions_manifest, ENCODE_CONDITIONS)
    inputs = {"conditions": conditions.outputs["conditions"]}
    staged = ctx.manifest(ctx.layout.input_manifest, STAGE_INPUTS).outputs
    if "pose" in staged:
        inputs["pose"] = staged["pose"]
    return inputs
